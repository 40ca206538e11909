"""FITCompress: bit widths and pruned weights of a trained float network, found together by a search.

Zandonati et al., "Towards Optimal Compression: Joint Pruning and Quantization" (arXiv 2302.07612); the metric is FIT
(arXiv 2210.08502).
"""
