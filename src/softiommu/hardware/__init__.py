"""Silicon: IOMMUs that know only memory, registers and queues."""
