# Renders counters as text: the page for Prometheus and the JSON of the statistics.
#
# Lives here: a template (a table of texts and of the cells whose sum follows each), and the job that reads the counters
# of all processes and fills the template in. Does not: names of metrics, what cells mean (api/metrics.py,
# shared/statistics.py).
#
# A template is made once. Each model has an Entry: its labels as text, its key, its counters. So a loaded model costs a
# few hundred bytes here, and no template is made again.
#
# A report is made on the loop's thread. It runs on any thread without the GIL, or in steps on the loop's thread, and
# owns all its memory. Counters are read while they are written: each cell is as it was at some moment.

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset
from posix.unistd cimport usleep

from fastinfer.native.job cimport Job, monotonic_ns, yield_to_loop
from fastinfer.shared.counters cimport Counters

from collections import namedtuple

from fastinfer.shared.counters import VERSION_CELL

cdef extern from "fastinfer/number/format.h" namespace "fastinfer::number" nogil:
    enum Nonfinite "fastinfer::number::Nonfinite":
        NONFINITE_LITERAL "fastinfer::number::NONFINITE_LITERAL"
    char* format_signed(int64_t number, char* out) noexcept
    char* write_fp64 "fastinfer::number::format_binary_span<fastinfer::number::Binary64>"(
        const char*, int64_t, int, char*, int64_t*) noexcept

cdef extern from "fastinfer/shared/shared_counters.h" namespace "fastinfer" nogil:
    enum BlockState "fastinfer::BlockState":
        BLOCK_NEVER_USED "fastinfer::BLOCK_NEVER_USED"
        BLOCK_BUSY "fastinfer::BLOCK_BUSY"
    int64_t wrapping_sum "fastinfer::sum"(int64_t one, int64_t other) noexcept
    bint copy_cells(int64_t* copy, const int64_t* cells, int count, int version) noexcept
    void add_cells(int64_t* totals, const int64_t* cells, int count, int latest) noexcept
    BlockState add_block(const char* block, int cells_at, int count, int version, int latest, const KeyTable& table,
                         int64_t* totals, int64_t stride, int64_t* copy, bint at_once) noexcept

cdef extern from "fastinfer/shared/process_usage.h" namespace "fastinfer" nogil:
    int USED_CELLS "fastinfer::USAGE_CELLS"
    int64_t ended_children_ticks(int64_t pid) noexcept
    void add_usage(int64_t pid, bint first, int64_t* cells) noexcept

cdef enum:
    # How a number is written.
    NO_NUMBER = 0
    WHOLE = 1               # 12
    DECIMAL = 2             # 12.0, divided by the unit

    NUMBER_SIZE = 26        # "-2.2250738585072014e-308" has 24
    SLACK = 64              # what number/format.h may touch after the last number
    KEY_BYTES = 16

    # The stages of a report.
    READ_PROCESSES = 0
    READ_OWN = 1
    READ_BANKS = 2
    WRITE = 3
    ENDED = 4

    # The work between two yields to the loop: some 20 µs.
    STEPS = 256
    ENTRIES = 64
    BLOCKS = 64

    REPEATS = 3             # of sums that a process's end made inconsistent

    SLICES = 8              # of this size in a step on the loop's own thread

    # A block whose counters are being changed is read again, in the next slice, for at most so long: a process that was
    # killed meanwhile never ends its change.
    PATIENCE_NS = 20_000_000
    PAUSE_US = 50

USAGE_CELLS = USED_CELLS
cdef int version_cell = VERSION_CELL
FORMS = {"": NO_NUMBER, "whole": WHOLE, "decimal": DECIMAL}

Step = namedtuple("Step", "before text after cells goes_on form unit condition skipped listed",
                  defaults=(None, b"", (), False, "", 1.0, None, 0, False))
Section = namedtuple("Section", "group head between tail steps", defaults=(b"", b"", b"", ()))
Group = namedtuple("Group", "entries extra", defaults=(None,))
Shared = namedtuple("Shared", "memory bank_bytes block_bytes cells_at")


# --- Templates --------------------------------------------------------------------------------------------------------

@cython.no_gc_clear
@cython.final
cdef class Template:
    def __cinit__(self, sections, extra=(0,)):
        cdef CSection* section
        cdef CStep* step
        cdef int steps = 0
        cdef int cells = 0
        cdef int place
        cdef int cell
        self._kept = list(sections)
        self.extra = tuple(extra)
        self.cells = 0
        self.section_count = <int>len(self._kept)
        self.sections = <CSection*>calloc(self.section_count + 1, sizeof(CSection))
        self.steps = <CStep*>calloc(sum([len(each.steps) for each in self._kept]) + 1, sizeof(CStep))
        total = sum([len(each.cells) for of in self._kept for each in of.steps])
        self.cell_lists = <int32_t*>calloc(total + 1, sizeof(int32_t))
        if self.sections == NULL or self.steps == NULL or self.cell_lists == NULL:
            raise MemoryError("no memory for a template")
        for place, given in enumerate(self._kept):
            section = &self.sections[place]
            section.group = given.group
            own = self.extra[given.group]
            section.head, section.head_size = text_of(given.head), len(given.head)
            section.between, section.between_size = text_of(given.between), len(given.between)
            section.tail, section.tail_size = text_of(given.tail), len(given.tail)
            section.first_step = steps
            section.step_count = <int>len(given.steps)
            section.entry_size = len(given.between)
            for number, of in enumerate(given.steps):
                step = &self.steps[steps]
                steps += 1
                step.before, step.before_size = text_of(of.before), len(of.before)
                step.after, step.after_size = text_of(of.after), len(of.after)
                step.text = -1 if of.text is None else of.text
                if not -1 <= step.text < TEXTS:
                    raise ValueError("an entry does not have this text")
                if step.text >= 0:
                    section.text_counts[step.text] += 1
                step.form = FORMS[of.form]
                step.unit = of.unit
                step.goes_on = of.goes_on
                step.listed = of.listed
                step.skipped = of.skipped
                if not 0 <= step.skipped < section.step_count - number:
                    raise ValueError("a step leaves out more than there are after it")
                step.condition = -1 if of.condition is None else of.condition
                step.cells = &self.cell_lists[cells]
                step.cell_count = <int>len(of.cells)
                for each in of.cells:
                    self.cell_lists[cells] = each
                    cells += 1
                for cell in [*of.cells, *([] if of.condition is None else [of.condition])]:
                    if cell < 0 or (given.group > 0 and cell >= own):
                        raise ValueError("an entry does not have this cell")
                    if given.group == 0:
                        self.cells = max(self.cells, cell + 1 - <int>own)
                section.entry_size += step.before_size + step.after_size + NUMBER_SIZE + 1

    def __dealloc__(self):
        free(self.sections)
        free(self.steps)
        free(self.cell_lists)


# Borrowed from the object, which the template keeps.
cdef const char* text_of(object text) except NULL:
    return PyBytes_AS_STRING(text)


@cython.final
cdef class Entry:
    def __init__(self, texts, bytes key not None=b"", Counters counters=None):
        self.texts = tuple(texts)
        self.key = key
        self.counters = counters
        if len(self.texts) > TEXTS or not all([type(text) is bytes for text in self.texts]):
            raise ValueError(f"an entry has at most {TEXTS} texts, of bytes")
        if len(key) not in (0, KEY_BYTES):
            raise ValueError(f"a key has {KEY_BYTES} bytes")


# --- Making a report --------------------------------------------------------------------------------------------------

@cython.no_gc_clear
@cython.final
cdef class Report(Job):
    def __cinit__(self, Template template not None, groups, shared=None, pids=(), latest=None):
        cdef State* report = &self.report
        cdef int place
        cdef Py_ssize_t size = SLACK
        self.template = template
        self._kept = []
        report.sections = template.sections
        report.section_count = template.section_count
        report.steps = template.steps
        report.interruption = &self.interruption
        report.latest = -1
        if latest is not None and latest < template.cells:
            report.latest = latest
        if len(groups) != len(template.extra):
            raise ValueError(f"the template has {len(template.extra)} groups")
        report.groups = <CGroup*>calloc(len(groups), sizeof(CGroup))
        if report.groups == NULL:
            raise MemoryError("no memory for a report")
        report.group_count = <int>len(groups)
        if shared is not None:
            memory = memoryview(shared.memory)
            self._kept.append(memory)
            open_banks(report, memory, shared)
        for place in range(report.group_count):
            entries = list(groups[place].entries)
            self._kept.append(entries)
            open_group(report, place, entries, groups[place].extra, template.extra[place],
                       template.cells if place == 0 else 0)
            if place == 0 and report.banks != NULL:
                open_keys(report, entries)
        report.copy = <int64_t*>malloc((template.cells + 1) * sizeof(int64_t))
        if report.copy == NULL:
            raise MemoryError("no memory for a report")
        if pids:
            open_processes(report, pids)
        for place in range(report.section_count):
            size += section_size(report, &report.sections[place])
        report.begin = report.at = <char*>malloc(size)
        if report.begin == NULL:
            raise MemoryError("no memory for a report")
        self.task.work = run_report
        self.task.state = report

    def __dealloc__(self):
        cdef int place
        if self.report.groups != NULL:
            for place in range(self.report.group_count):
                free(self.report.groups[place].entries)
                free(self.report.groups[place].totals)
        free(self.report.groups)
        free(self.report.keys)
        free(self.report.table.slots)
        free(self.report.copy)
        free(self.report.pids)
        free(self.report.begin)

    def step(self):
        cdef bint more = True
        for _ in range(SLICES):
            more = do_slice(&self.report)
            if not more:
                break
        return not more

    def result(self):
        cdef Text text
        cdef Py_ssize_t size
        cdef char* fitting
        if self.report.stage != ENDED or self.report.begin == NULL:
            raise ValueError("a report has one result, when it has ended")
        size = self.report.at - self.report.begin
        fitting = <char*>realloc(self.report.begin, size)
        text = Text.__new__(Text)
        text.block = fitting if fitting != NULL else self.report.begin
        text.size = size
        self.report.begin = NULL
        return text


@cython.final
cdef class Text:
    def __dealloc__(self):
        free(self.block)

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.block, self.size, 1, flags)


cdef int open_banks(State* report, const unsigned char[::1] memory, shared) except -1:
    if shared.bank_bytes % shared.block_bytes or shared.cells_at % sizeof(int64_t) or shared.cells_at < KEY_BYTES:
        raise ValueError("blocks of counters do not lie like this")
    report.bank_bytes, report.block_bytes, report.cells_at = shared.bank_bytes, shared.block_bytes, shared.cells_at
    report.bank_count = memory.shape[0] // report.bank_bytes
    report.banks = <const char*>&memory[0] if memory.shape[0] > 0 else NULL
    return 0


cdef int open_group(State* report, int place, list entries, extra, int own, int counted) except -1:
    cdef CGroup* group = &report.groups[place]
    cdef const int64_t[::1] given
    cdef Entry entry
    cdef Counters counters
    cdef bytes text
    cdef Py_ssize_t number
    cdef Py_ssize_t i
    cdef const char* end = report.banks + report.bank_count * report.bank_bytes
    group.count = len(entries)
    group.extra = own
    group.counted = counted
    group.stride = own + counted
    group.entries = <CEntry*>calloc(group.count + 1, sizeof(CEntry))
    group.totals = <int64_t*>calloc(group.count * group.stride + 1, sizeof(int64_t))
    if group.entries == NULL or group.totals == NULL:
        raise MemoryError("no memory for a report")
    if place == 0 and report.banks != NULL:
        if report.cells_at + (version_cell + 1) * <int>sizeof(int64_t) > report.block_bytes:
            raise ValueError("a block does not have all cells that the template reads")
    for number, entry in enumerate(entries):
        for i, text in enumerate(entry.texts):
            group.entries[number].texts[i] = PyBytes_AS_STRING(text)
            group.entries[number].text_sizes[i] = PyBytes_GET_SIZE(text)
        counters = entry.counters
        if counters is not None:
            group.entries[number].cells = counters.success.cells     # the first histogram begins the block
            # Counters in a bank are found by their key, together with those of other processes.
            if report.banks != NULL and report.banks <= <const char*>counters.success.cells < end:
                group.entries[number].cells = NULL
    if own > 0 and extra is not None:
        given = extra
        if given.shape[0] != group.count * own:
            raise ValueError(f"each entry of the group has {own} cells that are given")
        for number in range(group.count):
            memcpy(group.totals + number * group.stride, &given[number * own], own * sizeof(int64_t))
    return 0


cdef int open_keys(State* report, list entries) except -1:
    cdef Entry entry
    cdef Py_ssize_t count = report.groups[0].count
    cdef Py_ssize_t number
    cdef uint32_t slots = 4
    while slots < 2 * count:
        slots *= 2
    report.keys = <Key*>calloc(count + 1, sizeof(Key))
    report.table.slots = <uint32_t*>calloc(slots, sizeof(uint32_t))
    if report.keys == NULL or report.table.slots == NULL:
        raise MemoryError("no memory for a report")
    report.table.keys = report.keys
    report.table.mask = slots - 1
    for number, entry in enumerate(entries):
        if PyBytes_GET_SIZE(entry.key) == KEY_BYTES:
            memcpy(&report.keys[number], PyBytes_AS_STRING(entry.key), KEY_BYTES)
            report.table.add(<uint32_t>number)
    return 0


cdef int open_processes(State* report, pids) except -1:
    cdef Py_ssize_t number
    cdef CGroup* group = &report.groups[report.group_count - 1]
    if group.count != 1 or group.extra < USED_CELLS:
        raise ValueError("the last group has no cells for what processes use")
    report.pids = <int64_t*>malloc(len(pids) * sizeof(int64_t))
    if report.pids == NULL:
        raise MemoryError("no memory for a report")
    for number in range(len(pids)):
        report.pids[number] = pids[number]
    report.pid_count = len(pids)
    return 0


# The upper bound of a section's size.
cdef Py_ssize_t section_size(const State* report, const CSection* section) noexcept:
    cdef const CGroup* group = &report.groups[section.group]
    cdef Py_ssize_t size = section.head_size + section.tail_size + section.entry_size * group.count
    cdef Py_ssize_t number
    cdef int text
    for number in range(group.count):
        for text in range(TEXTS):
            size += section.text_counts[text] * group.entries[number].text_sizes[text]
    return size


# --- Running a report -------------------------------------------------------------------------------------------------

cdef void run_report(void* state) noexcept nogil:
    cdef State* report = <State*>state
    while do_slice(report) and yield_to_loop(report.interruption):
        if report.busy_since_ns != 0:
            usleep(PAUSE_US)


# Does a slice of the work; returns whether there is more.
cdef bint do_slice(State* report) noexcept nogil:
    if report.stage == READ_PROCESSES:
        read_processes(report)
    elif report.stage == READ_OWN:
        read_own(report)
    elif report.stage == READ_BANKS:
        read_banks(report)
    elif report.stage == WRITE:
        write_entries(report)
    return report.stage != ENDED


# Whether a block whose counters are being changed is to be read as it is.
cdef bint has_waited(State* report) noexcept nogil:
    cdef int64_t now = monotonic_ns()
    if report.busy_since_ns == 0:
        report.busy_since_ns = now
    return now - report.busy_since_ns > PATIENCE_NS


cdef void enter(State* report, int stage) noexcept nogil:
    report.stage = stage
    report.group = report.section = 0
    report.entry = 0


# The CPU time of a process that ends moves to its parent, the first process, when that has reaped it. If that
# happens meanwhile, the sums are computed again, so that the time counts once.
cdef void read_processes(State* report) noexcept nogil:
    cdef int64_t* cells
    if report.process < report.pid_count:
        cells = report.groups[report.group_count - 1].totals
        if report.process == 0:
            memset(cells, 0, USED_CELLS * sizeof(int64_t))
            report.ended_ticks = ended_children_ticks(report.pids[0])
        add_usage(report.pids[report.process], report.process == 0, cells)
        report.process += 1
    if report.process == report.pid_count:
        if (report.pid_count > 1 and report.repeated < REPEATS
                and ended_children_ticks(report.pids[0]) != report.ended_ticks):
            report.process = 0
            report.repeated += 1
        else:
            enter(report, READ_OWN)


cdef void read_own(State* report) noexcept nogil:
    cdef CGroup* group = &report.groups[0]
    cdef Py_ssize_t end = min(report.entry + ENTRIES, group.count)
    while report.entry < end:
        if group.entries[report.entry].cells != NULL:
            if (not copy_cells(report.copy, group.entries[report.entry].cells, group.counted, version_cell)
                    and not has_waited(report)):
                return
            report.busy_since_ns = 0
            add_cells(group.totals + report.entry * group.stride + group.extra, report.copy, group.counted,
                      report.latest)
        report.entry += 1
    if report.entry == group.count:
        enter(report, READ_BANKS)


# The blocks of a bank are first used in order, so the first unused one ends it.
cdef void read_banks(State* report) noexcept nogil:
    cdef CGroup* group = &report.groups[0]
    cdef Py_ssize_t of_a_bank
    cdef Py_ssize_t place
    cdef const char* at
    cdef BlockState state
    if report.banks == NULL or group.count == 0:
        enter(report, WRITE)
        return
    of_a_bank = report.bank_bytes // report.block_bytes
    for _ in range(BLOCKS):
        place = report.block % of_a_bank
        if place == 0:              # the process's own
            report.block += 1
            place = 1
        if report.block >= report.bank_count * of_a_bank:
            enter(report, WRITE)
            return
        at = report.banks + report.block * report.block_bytes
        state = add_block(at, <int>report.cells_at, group.counted, version_cell, report.latest, report.table,
                          group.totals + group.extra, group.stride, report.copy,
                          report.busy_since_ns != 0 and has_waited(report))
        if state == BLOCK_BUSY:
            has_waited(report)
            return
        report.busy_since_ns = 0
        report.block += of_a_bank - place if state == BLOCK_NEVER_USED else 1


cdef void write_entries(State* report) noexcept nogil:
    cdef const CSection* section
    cdef const CGroup* group
    cdef int done = 0
    while done < STEPS:
        if report.section == report.section_count:
            report.stage = ENDED
            return
        section = &report.sections[report.section]
        group = &report.groups[section.group]
        if report.entry == 0:
            put(report, section.head, section.head_size)
        if report.entry < group.count:
            if report.entry > 0:
                put(report, section.between, section.between_size)
            write_entry(report, section, group, report.entry)
            report.entry += 1
        if report.entry >= group.count:
            put(report, section.tail, section.tail_size)
            report.section += 1
            report.entry = 0
        done += section.step_count + 1


cdef void write_entry(State* report, const CSection* section, const CGroup* group, Py_ssize_t number) noexcept nogil:
    cdef const CEntry* entry = &group.entries[number]
    cdef const int64_t* totals = group.totals + number * group.stride
    cdef const CStep* step
    cdef int place = 0
    cdef int i
    cdef int64_t value = 0
    cdef int64_t fault
    cdef double quotient
    while place < section.step_count:
        step = &report.steps[section.first_step + place]
        place += 1
        if step.condition >= 0 and totals[step.condition] == 0:
            place += step.skipped
            continue
        if step.listed and (report.at - 1)[0] != c"[":
            put(report, b",", 1)
        put(report, step.before, step.before_size)
        if step.text >= 0:
            put(report, entry.texts[step.text], entry.text_sizes[step.text])
        put(report, step.after, step.after_size)
        if not step.goes_on:
            value = 0
        for i in range(step.cell_count):
            value = wrapping_sum(value, totals[step.cells[i]])
        if step.form == WHOLE:
            report.at = format_signed(value, report.at)
        elif step.form == DECIMAL:
            quotient = <double>value / step.unit
            report.at = write_fp64(<const char*>&quotient, 1, NONFINITE_LITERAL, report.at, &fault)


cdef inline void put(State* report, const char* text, Py_ssize_t size) noexcept nogil:
    memcpy(report.at, text, size)
    report.at += size
