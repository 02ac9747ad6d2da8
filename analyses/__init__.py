"""analyses: how a trained recurrent network is read.

Importing this package imports nothing else, so that the command line can answer ``--help`` at once; take
what you need from its modules, ``from analyses.fourier import FourierBasis``.
"""
