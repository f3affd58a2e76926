"""The local parameter server of one region.

It answers its workers at once with the region's model, lends them samples, and every K updates exchanges
pseudo-gradients with the global server while the workers go on.
"""
