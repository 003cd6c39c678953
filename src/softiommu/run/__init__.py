"""Front door 1: an unmodified program, supervised through seccomp user notification.

The way of a call: `seccomp` (filter, listener) -> `supervisor` (the loop) -> a handler (`fileops`, `opencalls`,
`statcalls`, `folders`, `lifecalls`), which knows the caller (`tracee`), its paths (`paths`, `shadow`), its memory
(`copier`, `spaces`) and the open files (`descriptors`); what they share is a `session`. Accesses to mappings without
pages come by `tracer`, and are made by `accesses`.

What differs from a kernel, and why:

* Only x86-64 calls are seen. io_uring and a supervisor of the program's own bypass or refuse us.
* Reads and writes of low numbers are not told, unless they are at offsets from 1 TiB up, where the regions of devices
  lie. So of a device that the program itself moves to a low number (dup2, SCM_RIGHTS) a read or write without such an
  offset is EINVAL; a queue there is not read or written right. lseek(2) of a low number to a small offset works, where
  the kernel says ESPIPE; what is read there then is zeros.
* O_PATH of a virtual file gives a plain descriptor of an empty one. chdir and calls that change a file (chmod, unlink,
  rename) do not know virtual paths. /proc/PID/status is edited as it is opened, and a second read shows no change.
* Private pages that the program unmaps, or leaves when it is killed, are lost to devices; those it leaves by exit or
  exec are kept up to 256 MiB while another supervised process lives. A private file page that the program may write
  is not un-shared when it is pinned.
* The supervisor looks at paths as the program does: one that hangs (a dead NFS server, a FUSE server that is itself
  supervised) holds up everything.
"""
