"""Jet constituents: the 32 leading particles of the jet tagger's jets, the data of several reference models."""
