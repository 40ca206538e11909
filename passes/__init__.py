"""The passes of pqc, one a file; `TABLE` is the explicit list, in the order of the chain."""

from pqc.passes.apply_masks import ApplyMasks
from pqc.passes.attach_costs import AttachCosts
from pqc.passes.attach_loss import AttachLoss
from pqc.passes.attach_optimizer import AttachOptimizer
from pqc.passes.attach_statistics import AttachStatistics
from pqc.passes.attach_teacher import AttachTeacher
from pqc.passes.attach_updates import AttachUpdates
from pqc.passes.batch_parameters import BatchParameters
from pqc.passes.bypass_masks import BypassMasks
from pqc.passes.bypass_quant import BypassQuant
from pqc.passes.calibrate_quant import CalibrateQuant
from pqc.passes.differentiate import Differentiate
from pqc.passes.dither_quant import DitherQuant
from pqc.passes.drop_wraps import DropWraps
from pqc.passes.expand_layernorm import ExpandLayerNorm
from pqc.passes.expand_softmax import ExpandSoftmax
from pqc.passes.expose_parameters import ExposeParameters
from pqc.passes.fix_batch import FixBatch
from pqc.passes.fold_batchnorm import FoldBatchNorm
from pqc.passes.fold_constants import FoldConstants
from pqc.passes.fold_gates import FoldGates
from pqc.passes.fold_masks import FoldMasks
from pqc.passes.fold_quant import FoldQuant
from pqc.passes.fold_relu_multiplier import FoldReluMultiplier
from pqc.passes.fold_statistics import FoldStatistics
from pqc.passes.free_batch import FreeBatch
from pqc.passes.freeze_bits import FreezeBits
from pqc.passes.freeze_masks import FreezeMasks
from pqc.passes.insert_masks import InsertMasks
from pqc.passes.insert_quant import InsertQuant
from pqc.passes.insert_relu_multiplier import InsertReluMultiplier
from pqc.passes.legalize import Legalize
from pqc.passes.lower_affine import LowerAffine
from pqc.passes.lower_bipolar import LowerBipolar
from pqc.passes.lower_bits import LowerBits
from pqc.passes.lower_conv import LowerConv
from pqc.passes.lower_gemm import LowerGemm
from pqc.passes.lower_learned import LowerLearned
from pqc.passes.lower_pool import LowerPool
from pqc.passes.lower_quant import LowerQuant
from pqc.passes.lower_reshape import LowerReshape
from pqc.passes.lower_scales import LowerScales
from pqc.passes.lower_tables import LowerTables
from pqc.passes.merge_quant import MergeQuant
from pqc.passes.normalize import Normalize
from pqc.passes.raise_bits import RaiseBits
from pqc.passes.relax_overflow import RelaxOverflow
from pqc.passes.shrink import Shrink
from pqc.passes.simplify import Simplify
from pqc.passes.strip_softmax import StripSoftmax
from pqc.passes.strip_training import StripTraining
from pqc.passes.train_batchnorm import TrainBatchNorm
from pqc.passes.unroll_recurrent import UnrollRecurrent
from pqc.passes.write_bipolar import WriteBipolar
from pqc.passes.write_qcdq import WriteQcdq
from pqc.rewriting import Pass

TABLE: dict[str, type[Pass]] = {
    kind.title: kind
    for kind in (
        Normalize,
        FoldConstants,
        Simplify,
        FreeBatch,
        FoldBatchNorm,
        LowerGemm,
        TrainBatchNorm,
        ExpandSoftmax,
        ExpandLayerNorm,
        UnrollRecurrent,
        Legalize,
        InsertReluMultiplier,
        InsertQuant,
        CalibrateQuant,
        MergeQuant,
        InsertMasks,
        ApplyMasks,
        BypassMasks,
        BypassQuant,
        AttachLoss,
        AttachCosts,
        AttachStatistics,
        AttachUpdates,
        ExposeParameters,
        AttachTeacher,
        RelaxOverflow,
        DitherQuant,
        LowerQuant,
        LowerLearned,
        BatchParameters,
        FixBatch,
        Differentiate,
        AttachOptimizer,
        FreezeMasks,
        FoldStatistics,
        FreezeBits,
        FoldMasks,
        FoldReluMultiplier,
        LowerBits,
        FoldQuant,
        DropWraps,
        WriteBipolar,
        Shrink,
        StripTraining,
        StripSoftmax,
        LowerAffine,
        LowerBipolar,
        LowerConv,
        LowerPool,
        LowerReshape,
        FoldGates,
        RaiseBits,
        LowerTables,
        LowerScales,
        WriteQcdq,
    )
}
