"""An NVMe 1.4 controller: admin and I/O queues, PRPs, MSI-X, and namespaces in memory or in a file."""
