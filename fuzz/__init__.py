"""A fuzzer for the manager: hostile calls on machines in this process, with the memory around every buffer watched."""
