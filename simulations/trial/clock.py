"""A clock that is wrong: processes see another time of day, by a small library that stands before the system's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from common.errors import FederationError

OFFSET = "SILOREC_TRIAL_CLOCK_SECONDS"

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long offset(void) {
    const char *said = getenv("SILOREC_TRIAL_CLOCK_SECONDS");
    return said ? atol(said) : 0;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(id, now);
    if (!status && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    int status = clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return status;
}

time_t time(time_t *result) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (result) *result = found.tv_sec;
    return found.tv_sec;
}
"""


def why_not() -> str:
    """Why a clock cannot be put wrong here; empty if it can."""
    return "" if shutil.which("cc") or shutil.which("gcc") else "a C compiler is needed to put a clock wrong"


def wrong_clock(folder: Path, seconds: int) -> Mapping[str, str]:
    """Variables that put the clock of a process, and of those that it starts, ahead by ``seconds``; behind where negative."""
    library = folder / "wrong_clock.so"
    if not library.exists():
        source = folder / "wrong_clock.c"
        source.write_text(SOURCE)
        compiler = shutil.which("cc") or "gcc"
        done = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(library), "-ldl"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise FederationError(f"the wrong clock cannot be compiled: {done.stderr.strip()}")
    before = os.environ.get("LD_PRELOAD")
    return {"LD_PRELOAD": str(library) if not before else f"{library}:{before}", OFFSET: str(seconds)}
