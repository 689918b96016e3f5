/* What the C tests share. Each is a program of its own, and compiles as C++ too. */
#ifndef LLMLB_TEST_H
#define LLMLB_TEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <llmlb_lock.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PORT 8000

static const char *message(void) {
    static char text[4096];
    size_t needed = 0;
    text[0] = '\0';
    (void)llmlb_last_error_message(text, sizeof text, &needed);
    return text;
}

static inline void fail(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: %s\n  errno: %s\n  last error: %s\n", file, line, what,
            strerror(errno), message());
    exit(1);
}

#define CHECK(condition) ((condition) ? (void)0 : fail(__FILE__, __LINE__, #condition))

static inline void check_result(const char *file, int line, const char *call, llmlb_result_t expected,
                                llmlb_result_t result) {
    if (result == expected)
        return;
    fprintf(stderr, "%d (%s) instead of %d: ", (int)result, llmlb_result_string(result),
            (int)expected);
    fail(file, line, call);
}

#define IS(expected, call) check_result(__FILE__, __LINE__, #call, expected, call)
#define OK(call) IS(LLMLB_OK, call)

/* A lock directory of its own for each test, the default one for it and for its children. */
static char directory[256];

static inline void enter_directory(void) {
    const char *temporary = getenv("TMPDIR");
    snprintf(directory, sizeof directory, "%s/llmlb-c-XXXXXX",
             temporary && *temporary ? temporary : "/tmp");
    CHECK(mkdtemp(directory) != NULL);
    CHECK(setenv(LLMLB_LOCK_DIR_ENV, directory, 1) == 0);
}

static inline const char *lock_file(uint16_t port) {
    static char path[512];
    size_t needed;
    OK(llmlb_lock_path(port, path, sizeof path, &needed));
    return path;
}

static inline void leave_directory(void) {
    for (uint16_t port = PORT; port < PORT + 10; port++) {
        unlink(lock_file(port));
        rmdir(lock_file(port));
    }
    /* Also shows that the library leaves nothing else behind. */
    CHECK(rmdir(directory) == 0);
}

static inline bool exists(const char *path) {
    struct stat st;
    return lstat(path, &st) == 0;
}

static inline void write_file(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    CHECK(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

static inline llmlb_lock_t *acquire(uint16_t port) {
    llmlb_lock_t *lock = NULL;
    llmlb_lock_info_t holder;
    OK(llmlb_lock_acquire(port, &lock, &holder));
    CHECK(lock != NULL);
    return lock;
}

/* Who refuses us the port. */
static inline llmlb_lock_info_t refused(uint16_t port) {
    llmlb_lock_t *const untouched = (llmlb_lock_t *)&directory;
    llmlb_lock_t *lock = untouched;
    llmlb_lock_info_t holder;
    memset(&holder, 0, sizeof holder);
    IS(LLMLB_ALREADY_RUNNING, llmlb_lock_acquire(port, &lock, &holder));
    CHECK(lock == untouched);
    CHECK(holder.port == port);
    return holder;
}

/* Whether the kernel lock is held: a process that is only named is refused as well. */
static inline bool is_locked(uint16_t port) {
    int fd = open(lock_file(port), O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    bool locked = flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    close(fd);
    return locked;
}

/* Pipes are the only clock: one tells the test that a child is ready, the other, by its closing,
 * tells the child that it may go. It is closed when the test dies, too. */
typedef struct {
    int read, write;
} channel_t;

static inline channel_t channel(void) {
    int fds[2];
    CHECK(pipe(fds) == 0);
    CHECK(fcntl(fds[0], F_SETFD, FD_CLOEXEC) == 0 && fcntl(fds[1], F_SETFD, FD_CLOEXEC) == 0);
    channel_t made = {fds[0], fds[1]};
    return made;
}

static inline void send_pid(int fd, pid_t pid) {
    CHECK(write(fd, &pid, sizeof pid) == (ssize_t)sizeof pid);
}

static inline pid_t receive_pid(int fd) {
    pid_t pid;
    CHECK(read(fd, &pid, sizeof pid) == (ssize_t)sizeof pid);
    return pid;
}

static inline void wait_for_close(int fd) {
    char byte;
    while (read(fd, &byte, 1) < 0 && errno == EINTR) {
    }
}

static inline int reap(pid_t pid) {
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

#define CHECK_EXITED(pid) CHECK(reap(pid) == 0)

typedef struct {
    pid_t pid;
    /* Close it, and the child ends. */
    int leash;
} child_t;

/* A child that runs `body`, and then waits for its leash to be let go. */
static inline child_t start(void (*body)(void)) {
    channel_t ready = channel(), leash = channel();
    child_t child;
    child.pid = fork();
    CHECK(child.pid >= 0);
    if (child.pid == 0) {
        close(leash.write);
        close(ready.read);
        body();
        send_pid(ready.write, getpid());
        wait_for_close(leash.read);
        _exit(0);
    }
    close(ready.write);
    close(leash.read);
    CHECK(receive_pid(ready.read) == child.pid);
    close(ready.read);
    child.leash = leash.write;
    return child;
}

static inline void let_go(child_t child) {
    close(child.leash);
    CHECK_EXITED(child.pid);
}

/* Lets go of it with -9, so that it can't clear up. */
static inline void kill_child(child_t child) {
    CHECK(kill(child.pid, SIGKILL) == 0);
    CHECK(WIFSIGNALED(reap(child.pid)));
    close(child.leash);
}

static llmlb_lock_t *held_by_child;

static inline void hold_port(void) {
    held_by_child = acquire(PORT);
}

static inline child_t start_holder(void) {
    return start(hold_port);
}

typedef struct {
    const char *name;
    void (*run)(void);
} test_t;

#define TEST(function) {#function, function}

static inline int run_tests(const char *program, const test_t *tests, size_t count) {
    alarm(300); /* A test that hangs ends, and with it, by their leashes, its children. */
    OK(llmlb_abi_check(LLMLB_ABI_VERSION));
    for (size_t i = 0; i < count; i++) {
        enter_directory();
        tests[i].run();
        leave_directory();
    }
    const char *name = strrchr(program, '/');
    printf("%-10s %2u passed\n", name ? name + 1 : program, (unsigned)count);
    return 0;
}

#define RUN(tests) run_tests(argv[0], tests, sizeof tests / sizeof *tests)

#endif
