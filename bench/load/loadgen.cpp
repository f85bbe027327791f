// A load generator for HTTP/1.1 on loopback: one thread, epoll, closed or open loop, every answer looked at.
//
//     loadgen PORT CONNECTIONS SILENT WARMUP_S SECONDS RATE ANSWERS_FILE [UNTIL_REFUSED] < PLAN
//
// RATE 0 is the closed loop: each connection asks again as soon as it is answered. Any other rate is the open loop:
// request i is due at start + i / RATE, whether or not the server keeps up. It is sent by the connection that has been
// idle longest; if none is idle it waits here. Its latency counts from the moment it was due, so a server that stalls
// pays for everybody who would have asked meanwhile, and what is unanswered at the end counts with its age.
//
// In the open loop each class has connections of its own, and a large request is sent in slices between which others
// get their turn: a small one never waits in this program because of a large one. SILENT further connections are
// opened and never ask.
//
// A connection that the server ends, by `Connection: close` or without a word, is opened anew when it is needed. Where
// nobody listens then, what is due waits; with UNTIL_REFUSED 1 the run ends: what was sent is still waited for, and
// what was not does not count. A server that cannot be reached at the beginning is an error.
//
// PLAN has a line `CLASS WEIGHT FILE` for each request; FILE is the whole of it, head and body. Files of one class are
// asked in turn, classes in blocks of their weights. Latencies are in nanoseconds, in histograms of three significant
// digits, one for each class; those of answers other than 200 have one of their own, too. Each distinct answer of each request is written once to ANSWERS_FILE, for the caller to
// check: "class request json_size size\n" and so many bytes; json_size is -1 unless the answer has binary tensors.

#include <algorithm>
#include <arpa/inet.h>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <fcntl.h>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <netinet/tcp.h>
#include <string>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include <unordered_set>
#include <vector>

namespace {

constexpr int64_t SECOND = 1'000'000'000;
constexpr int64_t DRAIN = 5 * SECOND;      // the longest wait for what is under way when the time is over
constexpr int64_t RETRY = SECOND / 100;    // how soon a server that did not listen is tried again
constexpr size_t SLICE = 64u << 10;        // of a request, sent at once; it takes the kernel some 20 microseconds
constexpr size_t KEPT_BYTES = 256u << 20;  // of distinct answers; further ones are counted as unchecked

int64_t now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

// Counts of values; neighbours within 1/1024 share a count.
class Histogram {
    std::vector<uint64_t> counts = std::vector<uint64_t>(64 * 1024);

 public:
    uint64_t total = 0;

    void add(int64_t value) {
        uint64_t v = value < 0 ? 0 : value;
        int shift = v < 2048 ? 0 : 53 - __builtin_clzll(v);
        counts[shift * 1024 + (v >> shift)]++;
        total++;
    }

    void print() const {
        std::printf("[");
        const char* comma = "";
        for (size_t i = 0; i < counts.size(); i++) {
            if (!counts[i])
                continue;
            int shift = i < 2048 ? 0 : int(i / 1024) - 1;
            uint64_t low = uint64_t(i - shift * 1024) << shift;
            std::printf("%s[%lu,%lu]", comma, low + ((uint64_t(1) << shift) >> 1), counts[i]);
            comma = ",";
        }
        std::printf("]");
    }
};

struct Class {
    std::string name;
    int weight;
    std::vector<std::string> requests;
    size_t next = 0;
    uint64_t completed = 0;
    uint64_t unfinished = 0;
    uint64_t without_retry_after = 0;  // of those that were answered with 503
    std::map<int, uint64_t> statuses;
    Histogram latencies, refusals;
};

struct Due {
    int klass;
    int64_t when;
};

// Connections, and the requests that wait for one of them: one lane for each class, or for all in the closed loop.
struct Lane {
    std::deque<int> idle;
    std::deque<Due> waiting;
};

struct Connection {
    int fd = -1;
    int lane = 0;
    bool idle = true;
    bool wants_write = false;
    int klass = 0, request = 0;
    int64_t due = 0, idle_since = 0;
    size_t sent = 0;
    std::string in;
};

struct Errors {
    uint64_t status = 0, closed = 0, malformed = 0, refused = 0;
    std::string first;
} errors;

std::vector<Class> classes;
std::vector<Connection> connections;
std::vector<Lane> lanes;
std::unordered_set<uint64_t> seen;
std::ofstream answers;
size_t kept = 0;
uint64_t answered = 0, unchecked = 0, sequence = 0, block = 0;
int poll_fd, port;
size_t busy = 0;  // connections that are not idle
double rate;
int64_t start, measured_from, measured_to, refused_at = 0;
bool until_refused = false;
Histogram lateness;

uint64_t hash(const char* data, size_t size, uint64_t seed) {
    uint64_t h = seed * 0x9E3779B97F4A7C15u + size, word = 0;
    for (; size >= 8; data += 8, size -= 8) {
        std::memcpy(&word, data, 8);
        h = (h ^ word) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    word = 0;
    std::memcpy(&word, data, size);
    h = (h ^ word) * 0xD6E8FEB86659FD93u;
    return h ^ (h >> 32);
}

void note(uint64_t& count, const std::string& what) {
    count++;
    if (errors.first.empty())
        errors.first = what.substr(0, 300);
}

// Returns whether somebody listens; if not, the connection has no socket.
bool open_connection(int index) {
    Connection& c = connections[index];
    if (c.fd >= 0)
        close(c.fd);
    int lane = c.lane;
    int64_t idle_since = c.idle_since;
    c = Connection();
    c.lane = lane;
    c.idle_since = idle_since;
    c.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(c.fd, reinterpret_cast<sockaddr*>(&address), sizeof address)) {
        if (!start) {
            std::fprintf(stderr, "connect: %s\n", std::strerror(errno));
            std::exit(1);
        }
        note(errors.refused, std::string("connect: ") + std::strerror(errno));
        close(c.fd);
        c.fd = -1;
        refused_at = now();
        if (until_refused)
            measured_to = std::min(measured_to, refused_at);
        return false;
    }
    fcntl(c.fd, F_SETFL, O_NONBLOCK);
    int one = 1;
    setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u32 = index;
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, c.fd, &event);
    return true;
}

void watch_writing(int index, bool wanted) {
    Connection& c = connections[index];
    if (c.wants_write == wanted)
        return;
    c.wants_write = wanted;
    epoll_event event{};
    event.events = EPOLLIN | (wanted ? uint32_t(EPOLLOUT) : 0u);
    event.data.u32 = index;
    epoll_ctl(poll_fd, EPOLL_CTL_MOD, c.fd, &event);
}

void write_more(int index) {
    Connection& c = connections[index];
    const std::string& request = classes[c.klass].requests[c.request];
    ssize_t n = send(c.fd, request.data() + c.sent, std::min(SLICE, request.size() - c.sent), MSG_NOSIGNAL);
    if (n > 0)
        c.sent += n;  // else full, or gone: reading will tell
    watch_writing(index, c.sent < request.size());
}

// Takes the class of the next request in order.
int next_class() {
    uint64_t place = sequence++ % block;
    int k = 0;
    while (place >= uint64_t(classes[k].weight))
        place -= classes[k++].weight;
    return k;
}

void ask(int index, Due due) {
    Connection& c = connections[index];
    c.klass = due.klass;
    Class& klass = classes[c.klass];
    c.request = klass.next++ % klass.requests.size();
    c.due = due.when;
    c.sent = 0;
    c.idle = false;
    busy++;
    write_more(index);
}

void rest(int index) {
    Connection& c = connections[index];
    c.idle = true;
    c.idle_since = now();
    busy--;
    lanes[c.lane].idle.push_back(index);
}

int64_t next_due() { return start + int64_t(double(sequence) * SECOND / rate); }

// Sends what is due and can be sent: in the closed loop something on every idle connection.
void send_due(int64_t t) {
    if (rate > 0)
        for (int64_t when; (when = next_due()) <= t && when < measured_to;) {
            int k = next_class();
            lanes[k].waiting.push_back({k, when});
        }
    for (Lane& lane : lanes)
        while (!lane.idle.empty() && (rate > 0 ? !lane.waiting.empty() : t < measured_to)) {
            int index = lane.idle.front();
            if (connections[index].fd < 0 && (now() < refused_at + RETRY || !open_connection(index)))
                break;
            lane.idle.pop_front();
            Due due{};
            if (rate > 0) {
                due = lane.waiting.front();
                lane.waiting.pop_front();
                // The lateness of this program alone: a connection was free, so nobody else was waited for.
                if (connections[index].idle_since <= due.when)
                    lateness.add(now() - due.when);
            } else
                due = {next_class(), now()};
            ask(index, due);
        }
}

void fail(int index, uint64_t& count, const std::string& what) {
    note(count, what);
    bool was_idle = connections[index].idle;
    open_connection(index);
    if (!was_idle)
        rest(index);
}

// The value of a header as a number; -1 if it is not there.
long field(const std::string& head, const char* name) {
    size_t length = std::strlen(name);
    for (size_t at = head.find("\r\n"); at != std::string::npos && at + 2 < head.size(); at = head.find("\r\n", at + 2))
        if (!strncasecmp(head.data() + at + 2, name, length))
            return std::atol(head.data() + at + 2 + length);
    return -1;
}

void completed(int index, int status, const std::string& head, const char* body, size_t size) {
    Connection& c = connections[index];
    Class& klass = classes[c.klass];
    int64_t t = now();
    answered++;
    klass.statuses[status]++;
    if (status == 503 && field(head, "retry-after:") < 0)
        klass.without_retry_after++;
    if (status != 200)
        note(errors.status, std::to_string(status) + " " + std::string(body, size));
    else if (seen.insert(hash(body, size, c.klass * 65536u + c.request)).second) {
        if (kept + size > KEPT_BYTES)
            unchecked++;
        else {
            kept += size;
            long json_size = field(head, "inference-header-content-length:");
            answers << c.klass << ' ' << c.request << ' ' << json_size << ' ' << size << '\n';
            answers.write(body, size);
        }
    }
    if (t >= measured_from && t < measured_to)
        klass.completed++;
    if (c.due >= measured_from && c.due < measured_to) {
        klass.latencies.add(t - c.due);
        if (status != 200)
            klass.refusals.add(t - c.due);
    }
    rest(index);
    if (strcasestr(head.c_str(), "\nconnection: close\r"))
        open_connection(index);
}

void readable(int index) {
    static std::vector<char> buffer(1 << 18);
    Connection& c = connections[index];
    ssize_t n = recv(c.fd, buffer.data(), buffer.size(), 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        if (c.idle) {  // the server ended an idle connection, which it may
            open_connection(index);
            return;
        }
        fail(index, errors.closed, "closed before the answer was complete");
        return;
    }
    c.in.append(buffer.data(), n);
    size_t end = c.in.find("\r\n\r\n");
    if (end == std::string::npos)
        return;
    std::string head = c.in.substr(0, end + 2);
    long length = field(head, "content-length:");
    if (c.idle || length < 0 || head.compare(0, 7, "HTTP/1.")) {
        fail(index, errors.malformed, head);
        return;
    }
    end += 4;
    if (c.in.size() < end + length) {
        c.in.reserve(end + length);
        return;
    }
    if (c.in.size() > end + length || c.wants_write) {  // more than was asked for, or before it was asked
        fail(index, errors.malformed, "bytes behind the answer, or an answer before the request was sent: " + head);
        return;
    }
    std::string answer = std::move(c.in);
    c.in.clear();
    completed(index, std::atoi(head.data() + 9), head, answer.data() + end, length);
}

void wait(std::vector<epoll_event>& events, int64_t nanoseconds) {
    timespec timeout{nanoseconds / SECOND, nanoseconds % SECOND};
    int count = epoll_pwait2(poll_fd, events.data(), events.size(), nanoseconds < 0 ? nullptr : &timeout, nullptr);
    if (count < 0 && errno == ENOSYS)  // before Linux 5.11: whole milliseconds
        count = epoll_wait(poll_fd, events.data(), events.size(), nanoseconds / 1'000'000);
    for (int i = 0; i < count; i++) {
        int index = events[i].data.u32;
        if (events[i].events & ~uint32_t(EPOLLOUT))
            readable(index);
        if ((events[i].events & EPOLLOUT) && connections[index].wants_write) {
            write_more(index);
            send_due(now());  // what became due during this slice
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    port = std::atoi(argv[1]);
    int asking = std::atoi(argv[2]), silent = std::atoi(argv[3]);
    double warmup = std::atof(argv[4]), seconds = std::atof(argv[5]);
    rate = std::atof(argv[6]);
    answers.open(argv[7], std::ios::binary);
    until_refused = argc > 8 && *argv[8] == '1';
    std::string name, file;
    for (int weight; std::cin >> name >> weight && std::getline(std::cin >> std::ws, file);) {
        if (classes.empty() || classes.back().name != name) {
            classes.emplace_back();
            classes.back().name = name;
            classes.back().weight = weight;
            block += weight;
        }
        std::ifstream in(file, std::ios::binary);
        classes.back().requests.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    }
    rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_TIMERSLACK, 1);
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    lanes.resize(rate > 0 ? classes.size() : 1);
    connections.resize(std::max<size_t>(asking, lanes.size()) + silent);
    for (size_t i = 0; i < connections.size(); i++) {
        connections[i].lane = i % lanes.size();
        open_connection(i);
        if (i + silent < connections.size())
            lanes[connections[i].lane].idle.push_back(i);
    }

    start = now();
    measured_from = start + int64_t(warmup * SECOND);
    measured_to = measured_from + int64_t(seconds * SECOND);
    std::vector<epoll_event> events(1024);
    rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    for (int64_t t = start; t < measured_to; t = now()) {
        send_due(t);
        int64_t next = rate > 0 ? std::min(next_due(), measured_to) : measured_to;
        if (refused_at)
            next = std::min(next, refused_at + RETRY);
        wait(events, std::max<int64_t>(0, next - now()));
    }
    getrusage(RUSAGE_SELF, &after);
    // Nothing further is due; what was and what is under way counts, with its age if it does not come in time.
    auto left = [&] {
        for (Lane& lane : lanes)
            if (!lane.waiting.empty())
                return true;
        return busy > 0;
    };
    auto send_rest = [&] {
        if (!until_refused || !refused_at)
            send_due(measured_to);
        else
            for (Lane& lane : lanes)
                lane.waiting.clear();
    };
    send_rest();
    for (int64_t end = measured_to + DRAIN, t; (t = now()) < end && left();) {
        wait(events, std::min(end - t, refused_at ? RETRY : end - t));
        send_rest();
    }
    int64_t end = now();
    auto unfinished = [&](const Due& due) {
        if (due.when < measured_from)
            return;
        classes[due.klass].unfinished++;
        classes[due.klass].latencies.add(end - due.when);
    };
    for (Connection& c : connections)
        if (!c.idle)
            unfinished({c.klass, c.due});
    size_t unsent = 0;
    for (Lane& lane : lanes) {
        unsent += lane.waiting.size();
        for (Due& due : lane.waiting)
            unfinished(due);
    }

    auto spent = [](const timeval& a, const timeval& b) {
        return b.tv_sec - a.tv_sec + (b.tv_usec - a.tv_usec) * 1e-6;
    };
    std::printf(
        "{\"seconds\":%.6f,\"answered\":%lu,\"user_s\":%.6f,\"sys_s\":%.6f,\"unchecked\":%lu,\"errors\":%lu,\"first_"
        "error\":\"",
        seconds, answered, spent(before.ru_utime, after.ru_utime), spent(before.ru_stime, after.ru_stime), unchecked,
        errors.status + errors.closed + errors.malformed + errors.refused);
    for (unsigned char c : errors.first)
        std::printf(c < 32 || c > 126 || c == '"' || c == '\\' ? "\\u%04x" : "%c", c);
    std::printf("\",\"closed\":%lu,\"malformed\":%lu,\"refused\":%lu,\"unsent\":%lu,\"lateness\":", errors.closed,
                errors.malformed, errors.refused, unsent);
    lateness.print();
    std::printf(",\"classes\":[");
    for (size_t i = 0; i < classes.size(); i++) {
        Class& k = classes[i];
        std::printf("%s{\"name\":\"%s\",\"completed\":%lu,\"unfinished\":%lu,\"latencies\":", i ? "," : "",
                    k.name.c_str(), k.completed, k.unfinished);
        k.latencies.print();
        std::printf(",\"refusals\":");
        k.refusals.print();
        std::printf(",\"without_retry_after\":%lu,\"statuses\":{", k.without_retry_after);
        const char* comma = "";
        for (auto [status, count] : k.statuses) {
            std::printf("%s\"%d\":%lu", comma, status, count);
            comma = ",";
        }
        std::printf("}}");
    }
    std::printf("]}\n");
    return 0;
}
