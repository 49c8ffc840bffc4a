"""One writer per run folder; the lock dies with its process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mlorun.errors import ConfigError, FolderInUseError
from mlorun.run.lock import is_locked, locked

HOLD = """
import sys, time
from pathlib import Path
from typing import Any
from mlorun.run.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(FolderInUseError) as caught, locked(tmp_path):
            pass
        assert f"process {os.getpid()} on " in (caught.value.seen or "")
        assert caught.value.exit_code == 6
        assert is_locked(tmp_path), "looking at it does not release it"
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert is_locked(tmp_path)
        with pytest.raises(FolderInUseError, match="another process") as caught, locked(tmp_path):
            pass
        assert f"process {holder.pid} on " in (caught.value.seen or "")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locked(tmp_path):
        pass


def test_a_forked_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path):
        pid = os.fork()
        if not pid:
            time.sleep(60)
            os._exit(0)
    try:
        assert not is_locked(tmp_path)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_lock_file_that_says_nothing_is_enough(tmp_path: Path) -> None:
    with locked(tmp_path):
        os.truncate(tmp_path / ".lock", 0)  # by another process, say
        with pytest.raises(FolderInUseError) as caught, locked(tmp_path):
            pass
        assert caught.value.seen == "a process that did not say which"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_to_is_an_error_with_the_fix(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match="cannot be written to"), locked(tmp_path):
        pass
