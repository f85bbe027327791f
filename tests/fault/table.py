"""The faults: what happens, what is required, who tries it, and about how long that takes."""

from __future__ import annotations

from tests.fault import (
    chaos,
    clients,
    connections,
    disks,
    ending,
    hostile,
    leftovers,
    models,
    overload,
    surroundings,
    work,
)
from tests.fault.trial import Fault

FAULTS = [
    Fault("cut uploads", "clients gone in mid-upload", "bytes in flight and files back in 1 s, +5 MiB at most; "
          "neighbours exact", clients.cut_uploads, 40, 6),
    Fault("gone", "clients gone while queued, while running", "queued ones never run, a run is ended, within 1 s; "
          "neighbours exact", clients.gone, 4, 4),
    Fault("slow readers", "200 clients read 1 KiB/s of 16 MiB answers", "one answer held for each; healthy p99 at "
          "most 1.5 times", clients.slow_readers, 20, 6),
    Fault("slow writers", "4,000 connections send a byte a second", "healthy p99 at most 1.5 times",
          clients.slow_writers, 15, 6),
    Fault("half-close", "clients end their side and wait", "all answers, in order, then the end",
          clients.half_close, 9, 3),
    Fault("pipelining", "1,000 requests at once, one bad in the middle", "answers in order, then 400 and close, "
          "nothing more", clients.pipelining, 3, 3),
    Fault("idle", "10,000 idle connections", "at most 8 KiB each; p99 of the active ones +10 %",
          connections.idle, 35, 7),
    Fault("out of files", "more connections than file descriptors", "no spin, existing ones unharmed, normal in 1 s",
          connections.out_of_files, 9, 8),
    Fault("bad item", "one bad item in a batch of 32", "31 exact answers, one error", models.bad_item, 6, 2),
    Fault("corrupt", "200 damaged ONNX files on load", "a clear 400, the old version never stops, the same process",
          models.corrupt, 15, 5),
    Fault("unload", "an unload with 1,000 requests in flight", "all of them answered", models.unload_in_flight, 4, 4),
    Fault("load storm", "32 threads, 1,024 loads and unloads each", "no failure, others unharmed; memory of 100 cycles "
          "+5 % at most", models.load_storm, 60, 6),
    Fault("SIGTERM", "SIGTERM under load", "0 failed; not ready at once; `Connection: close`; exit 0",
          ending.terminate, 55, 8),
    Fault("connects", "SIGTERM under a storm of connects", "no accepted connection reset or unanswered, no connect "
          "waits, refused at once", ending.connects, 120, 10),
    Fault("given up", "requests that do not end within the drain", "503 with Retry-After for each; over in 5 s more",
          ending.given_up, 25, 12),
    Fault("SIGUSR1", "SIGUSR1 and SIGUSR2 under load", "0 failed; state and stacks in the log each time; nobody ends",
          ending.inspected, 30, 8),
    Fault("SIGHUP", "rolling restart under load", "0 failed, 0 refused; all processes replaced",
          ending.restart, 60, 10),
    Fault("SIGKILL", "kill -9 of a serving process", "failed at most what was in flight there; a replacement in 1 s "
          "and the model's load", ending.kill, 60, 12),
    Fault("SIGFPE", "a model that kills its process", "the same", ending.floating_point, 60, 12),
    Fault("quarantine", "a model that kills its process at load", "refused, not replayed", ending.quarantine, 20, 15),
    Fault("flood", "three times the peak for 60 s, ms an item", "goodput 90 % of the peak; refusals in 10 ms, with "
          "Retry-After; memory flat; normal 1 s later", overload.flood, 72, 13),
    Fault("deadlines", "1 to 50 ms for a model of 200 ms", "504 within 10 ms of the deadline; expired work never runs",
          overload.deadlines, 14, 5),
    Fault("mixed", "a million requests, a fifth of them bad", "each answered; 1 B a request at most; files and threads "
          "equal", overload.mixed, 120, 5),
    Fault("large", "64 MiB of JSON", "stall at most 20 ms; health p99 at most 50 ms", overload.large, 25, 9),
    Fault("many models", "8 models", "threads at most 2 x cores + 4; 95 % of one's throughput; idle under 1 % of "
          "a core", models.many_models, 24, 7),
    Fault("no memory", "more bodies than their budget", "503 with Retry-After; what fits is answered",
          surroundings.no_memory_for_a_body, 2, 2),
    Fault("disk full", "every log line fails with ENOSPC", "serving unharmed", surroundings.disk_full, 15, 4),
    Fault("log blocked", "the log is a full pipe", "serving unharmed", surroundings.log_blocked, 17, 6),
    Fault("clock", "the wall clock jumps by an hour, each second", "serving unharmed",
          surroundings.clock_jumps, 27, 10),
    Fault("swapped", "files replaced while they are loaded", "wholly the old or wholly the new model",
          models.swapped, 10, 4),
    Fault("costly", "requests that take a second, to models that were quick until then", "health checks answered "
          "meanwhile, p99 50 ms at most; no such run on the loop's thread", hostile.costly_requests, 30, 12),
    Fault("withdrawn", "a model that ends processes, with other requests each time", "three processes, then 503; the "
          "others unharmed", hostile.withdrawn, 15, 10),
    Fault("many shapes", "9,000 clients with a shape each leave at once", "no more processor time than if they had "
          "one shape", hostile.shapes_that_leave, 25, 8),
    Fault("stat", "a stat() that fails below one model's directory", "that model refused, others unharmed, no task "
          "fails", disks.stat_fails, 30, 12),
    Fault("vanished", "the repository vanishes and comes back", "nothing unloaded, others unharmed",
          disks.repository_vanishes, 25, 8),
    Fault("hanging load", "loads that hang", "given up with 504; a dead process replaced, a restart ended meanwhile; "
          "others unharmed", disks.load_hangs, 45, 30),
    Fault("large loads", "60 loads with large configurations, control requests of 1 MiB", "others wait 100 ms at most; "
          "20 MiB and 1.5 a load in the supervisor", disks.large_configurations, 30, 10),
    Fault("bombs", "small bodies that make much of themselves", "memory beyond 1 MiB and processor time at most 10 "
          "times what is fair", work.bomb_costs, 60, 20),
    Fault("gone bombs", "clients of compressed bodies leave at once", "honest requests within 1 s; idle 1 s later",
          work.gone_bombs, 20, 8),
    Fault("gone work", "clients leave while decoded, classified, encoded", "honest requests within 1 s; idle 1 s later",
          work.gone_work, 60, 20),
    Fault("images", "images of a few KiB that take seconds to decode", "504 at the deadline; idle 1 s later",
          work.images, 20, 10),
    Fault("endless", "runs without end, on all native threads", "p99 of another model at most twice that beside busy "
          "processes; 0 failed", work.endless_runs, 75, 18),
    Fault("refused loads", "100 refused loads of a model of 64 MiB", "two models' memory kept at most; a good "
          "load works", leftovers.refused_loads, 40, 6),
    Fault("huge answers", "requests whose outputs exceed the budget", "small requests to the same model are answered",
          leftovers.huge_answers, 30, 5),
    Fault("chaos", "loads, signals, disks, bombs, departures, all at once", "all answers of others right, their p99 at "
          "most twice the control's; no process lost; memory inside the budget", chaos.row, 130, 30),
]  # fmt: skip
