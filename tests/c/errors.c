/* Each error code, provoked for real. LLMLB_NULL_ARGUMENT has its own test; LLMLB_PANIC, which
 * needs a bug, and LLMLB_OTHER, which needs a newer core, are tested in Rust. */
#include "test.h"

#include <sys/resource.h>

static llmlb_lock_t *lock;
static llmlb_lock_info_t info;
static size_t needed;

static void invalid_argument(void) {
    IS(LLMLB_INVALID_ARGUMENT, llmlb_stop_process(0));
    IS(LLMLB_INVALID_ARGUMENT, llmlb_stop_process(UINT32_MAX)); /* would be kill(-1) */
    IS(LLMLB_INVALID_ARGUMENT, llmlb_stop_process((uint32_t)INT32_MAX + 1));
    IS(LLMLB_INVALID_ARGUMENT, llmlb_list_servers_in("", NULL, 0, &needed));

    llmlb_lock_t *released = acquire(PORT);
    OK(llmlb_lock_release(released));
    char path[8];
    int fd = -1;
    IS(LLMLB_INVALID_ARGUMENT, llmlb_lock_release(released));
    IS(LLMLB_INVALID_ARGUMENT, llmlb_lock_info(released, &info));
    IS(LLMLB_INVALID_ARGUMENT, llmlb_lock_file(released, path, sizeof path, &needed));
    IS(LLMLB_INVALID_ARGUMENT, llmlb_lock_fd(released, &fd));
    IS(LLMLB_INVALID_ARGUMENT, llmlb_lock_set_inheritable(released, true));
    IS(LLMLB_INVALID_ARGUMENT, llmlb_lock_hand_over(released, (uint32_t)getpid()));
    IS(LLMLB_INVALID_ARGUMENT, llmlb_lock_adopt(released));
    llmlb_child_hook_t *hook;
    IS(LLMLB_INVALID_ARGUMENT, llmlb_lock_child_hook(released, &hook));
    IS(LLMLB_INVALID_ARGUMENT, llmlb_lock_verify(released));
    CHECK(strcmp(message(), "the lock was released before") == 0);
    llmlb_lock_free(released);
}

static void invalid_utf8(void) {
    llmlb_acquire_options_t options = llmlb_acquire_options_default();
    options.directory = "/tmp/\xff";
    IS(LLMLB_INVALID_UTF8, llmlb_lock_acquire_with(PORT, &options, &lock, &info));
    CHECK(setenv(LLMLB_LOCK_DIR_ENV, "/tmp/\xff", 1) == 0);
    IS(LLMLB_INVALID_UTF8, llmlb_lock_dir(NULL, 0, &needed));
    CHECK(setenv(LLMLB_LOCK_DIR_ENV, directory, 1) == 0);
}

static void buffer_too_small(void) {
    char path[512];
    memset(path, 'x', sizeof path);
    IS(LLMLB_BUFFER_TOO_SMALL, llmlb_lock_dir(NULL, 0, &needed));
    CHECK(needed == strlen(directory) + 1);
    IS(LLMLB_BUFFER_TOO_SMALL, llmlb_lock_dir(path, needed - 1, &needed));
    CHECK(path[0] == 'x');
    OK(llmlb_lock_dir(path, needed, &needed));
    CHECK(strcmp(path, directory) == 0 && path[needed] == 'x');
}

static void abi_mismatch(void) {
    IS(LLMLB_ABI_MISMATCH, llmlb_abi_check(LLMLB_ABI_VERSION + 1));
}

static void already_running(void) {
    llmlb_lock_t *mine = acquire(PORT);
    CHECK(refused(PORT).pid == (uint32_t)getpid());
    llmlb_lock_free(mine);
}

static void acquire_failed(void) {
    CHECK(mkdir(lock_file(PORT), 0700) == 0);
    memset(&info, 0x55, sizeof info);
    IS(LLMLB_ACQUIRE_FAILED, llmlb_lock_acquire(PORT, &lock, &info));
    CHECK(info.pid == 0x55555555); /* only a holder is written on failure */
    CHECK(strstr(message(), lock_file(PORT)) != NULL);
}

static void corrupted(void) {
    write_file(lock_file(PORT), "{\"pid\":");
    bool found;
    IS(LLMLB_CORRUPTED, llmlb_read_lock_info(PORT, &info, &found));
}

static void directory_creation_failed(void) {
    write_file(lock_file(PORT), "");
    llmlb_acquire_options_t options = llmlb_acquire_options_default();
    options.directory = lock_file(PORT);
    IS(LLMLB_DIRECTORY_CREATION_FAILED, llmlb_lock_acquire_with(PORT, &options, &lock, &info));
    CHECK(llmlb_last_os_error() == ENOTDIR);
}

static void held_by_unknown(void) {
    int fd = open(lock_file(PORT), O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && flock(fd, LOCK_EX) == 0);
    IS(LLMLB_HELD_BY_UNKNOWN, llmlb_lock_acquire(PORT, &lock, &info));
    close(fd);
}

static void invalid_port(void) {
    llmlb_stop_options_t options = llmlb_stop_options_default();
    llmlb_stop_outcome_t outcome;
    bool found;
    IS(LLMLB_INVALID_PORT, llmlb_lock_acquire(0, &lock, &info));
    IS(LLMLB_INVALID_PORT, llmlb_read_lock_info(0, &info, &found));
    IS(LLMLB_INVALID_PORT, llmlb_stop_server(0, &options, &outcome));
    IS(LLMLB_INVALID_PORT, llmlb_lock_path(0, NULL, 0, &needed));
}

static void lost(void) {
    llmlb_lock_t *mine = acquire(PORT);
    CHECK(unlink(lock_file(PORT)) == 0);
    IS(LLMLB_LOST, llmlb_lock_verify(mine));
    IS(LLMLB_LOST, llmlb_lock_adopt(mine));
    llmlb_lock_free(mine);
}

static void no_such_process(void) {
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    CHECK_EXITED(pid);
    llmlb_lock_t *mine = acquire(PORT);
    IS(LLMLB_NO_SUCH_PROCESS, llmlb_lock_hand_over(mine, (uint32_t)pid));
    llmlb_lock_free(mine);
    IS(LLMLB_NO_SUCH_PROCESS, llmlb_stop_process((uint32_t)pid));
    CHECK(llmlb_last_os_error() == ESRCH);
}

static void not_owner(void) {
    llmlb_lock_t *mine = acquire(PORT);
    pid_t pid = fork();
    if (pid == 0) {
        IS(LLMLB_NOT_OWNER, llmlb_lock_hand_over(mine, (uint32_t)getpid()));
        _exit(0);
    }
    CHECK_EXITED(pid);
    llmlb_lock_free(mine);
}

static void hand_over_failed(void) {
    pid_t pid = fork();
    if (pid == 0) {
        llmlb_lock_t *mine = acquire(PORT);
        llmlb_child_hook_t *hook;
        OK(llmlb_lock_child_hook(mine, &hook));
        struct rlimit no_more = {0, 0};
        signal(SIGXFSZ, SIG_IGN);
        CHECK(setrlimit(RLIMIT_FSIZE, &no_more) == 0);
        IS(LLMLB_HAND_OVER_FAILED, llmlb_lock_hand_over(mine, (uint32_t)getppid()));
        CHECK(llmlb_last_os_error() == EFBIG);
        IS(LLMLB_HAND_OVER_FAILED, llmlb_child_hook_run(hook));
        llmlb_child_hook_free(hook);
        llmlb_lock_free(mine);
        _exit(0);
    }
    CHECK_EXITED(pid);
}

static void release_failed(void) {
    const uid_t nobody = 65534;
    bool root = geteuid() == 0;
    if (root) /* whom no permission stops */
        CHECK(chown(directory, nobody, (gid_t)-1) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (root)
            CHECK(setuid(nobody) == 0);
        llmlb_lock_t *mine = acquire(PORT);
        CHECK(chmod(directory, 0500) == 0);
        IS(LLMLB_RELEASE_FAILED, llmlb_lock_release(mine));
        CHECK(llmlb_last_os_error() == EACCES);
        CHECK(chmod(directory, 0700) == 0);
        llmlb_lock_free(mine);
        /* The port is free all the same. */
        llmlb_lock_free(acquire(PORT));
        _exit(0);
    }
    CHECK_EXITED(pid);
}

static void read_failed(void) {
    CHECK(mkfifo(lock_file(PORT), 0600) == 0);
    bool found;
    IS(LLMLB_READ_FAILED, llmlb_read_lock_info(PORT, &info, &found));
    CHECK(strstr(message(), "is a FIFO") != NULL);
}

static void close_descriptors(void) {
    hold_port();
    int fd = -1;
    OK(llmlb_lock_fd(held_by_child, &fd));
    close(fd); /* as a careless daemon does */
}

static void not_holder(void) {
    child_t careless = start(close_descriptors);
    llmlb_stop_options_t options = llmlb_stop_options_default();
    llmlb_stop_outcome_t outcome;
    IS(LLMLB_NOT_HOLDER, llmlb_stop_server(PORT, &options, &outcome));
    let_go(careless);
}

static void stop_failed(void) {
    llmlb_lock_t *mine = acquire(PORT);
    llmlb_stop_options_t options = llmlb_stop_options_default();
    llmlb_stop_outcome_t outcome;
    IS(LLMLB_STOP_FAILED, llmlb_stop_server(PORT, &options, &outcome));
    CHECK(strstr(message(), "this very process guards port 8000") != NULL);
    llmlb_lock_free(mine);
}

static bool always(void *user_data) {
    CHECK(user_data == &needed);
    return true;
}

static void interrupted(void) {
    child_t holder = start_holder();
    llmlb_acquire_options_t options = llmlb_acquire_options_default();
    options.timeout_ms = UINT64_MAX;
    options.interrupted = always;
    options.user_data = &needed;
    IS(LLMLB_INTERRUPTED, llmlb_lock_acquire_with(PORT, &options, &lock, &info));
    let_go(holder);
}

static void texts_are_never_null(void) {
    CHECK(strcmp(llmlb_result_string(LLMLB_OK), "Success") == 0);
    CHECK(strcmp(llmlb_result_string(LLMLB_CORRUPTED), "Lock file is corrupted") == 0);
    CHECK(strcmp(llmlb_result_string(UINT32_MAX), "Unknown result") == 0);
}

int main(int argc, char **argv) {
    (void)argc;
    CHECK(*message() == '\0' && llmlb_last_os_error() == 0); /* nothing has failed yet */
    static const test_t tests[] = {
        TEST(invalid_argument), TEST(invalid_utf8),     TEST(buffer_too_small),
        TEST(abi_mismatch),     TEST(already_running),  TEST(acquire_failed),
        TEST(corrupted),        TEST(directory_creation_failed),
        TEST(held_by_unknown),  TEST(invalid_port),     TEST(lost),
        TEST(no_such_process),  TEST(not_owner),        TEST(hand_over_failed),
        TEST(release_failed),   TEST(read_failed),      TEST(not_holder),
        TEST(stop_failed),      TEST(interrupted),      TEST(texts_are_never_null),
    };
    return RUN(tests);
}
