"""A drive's file outlives a QEMU that dies amid writes, as a disk outlives a power failure: what was flushed is there,
and the file system is whole once its journal was replayed."""

from guests.crash import die_amid_writes


def test_what_was_flushed_survives_the_death_of_qemu_amid_writes(tmp_path):
    die_amid_writes(tmp_path, after=1)
