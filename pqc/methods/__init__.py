"""The pruning methods, one a file; `TABLE` is the explicit list."""

from pqc.method import Method
from pqc.methods.continuous_sparsification import ContinuousSparsificationMethod

TABLE: dict[str, type[Method]] = {method.title: method for method in (ContinuousSparsificationMethod,)}
