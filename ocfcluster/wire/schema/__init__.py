"""The formats, declared with construct. Normative: where a codec disagrees, the codec is wrong.

Nothing here runs on a hot path (a declaration costs 100 times its ``struct`` codec); tests hold the codecs equal to
these declarations, interpreted and compiled, on generated input. docs/formats.md says the same in prose, and which
fields a receiver ignores.
"""
