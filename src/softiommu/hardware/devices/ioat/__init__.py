"""An Intel QuickData Technology (I/OAT) DMA engine, version 3.2."""
