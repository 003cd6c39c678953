"""Page tables: one walker and one mapper for every format, plain and compiled from the same source."""
