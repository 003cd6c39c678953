"""Front door 1: an unmodified program under supervision."""
