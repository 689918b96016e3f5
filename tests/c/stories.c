/* What the library is for, told from C. */
#include "test.h"

static void a_port_is_guarded_until_its_release(void) {
    /* time() lags behind the clock that the library reads. */
    struct timespec before, after;
    clock_gettime(CLOCK_REALTIME, &before);
    llmlb_lock_t *lock = acquire(PORT);
    clock_gettime(CLOCK_REALTIME, &after);

    llmlb_lock_info_t info;
    OK(llmlb_lock_info(lock, &info));
    CHECK(info.pid == (uint32_t)getpid() && info.port == PORT);
    CHECK(info.started_at_sec >= before.tv_sec && info.started_at_sec <= after.tv_sec);
    CHECK(info.started_at_nsec < 1000000000);

    char file[512], path[512];
    size_t needed;
    OK(llmlb_lock_file(lock, file, sizeof file, &needed));
    OK(llmlb_lock_path(PORT, path, sizeof path, &needed));
    CHECK(strcmp(file, path) == 0 && needed == strlen(file) + 1);
    CHECK(strncmp(file, directory, strlen(directory)) == 0);
    CHECK(exists(file));
    OK(llmlb_lock_verify(lock));

    int fd = -1;
    OK(llmlb_lock_fd(lock, &fd));
    struct stat at_fd, at_path;
    CHECK(fstat(fd, &at_fd) == 0 && stat(file, &at_path) == 0 && at_fd.st_ino == at_path.st_ino);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);

    llmlb_lock_info_t read;
    bool found = false;
    OK(llmlb_read_lock_info(PORT, &read, &found));
    CHECK(found && read.pid == info.pid && read.started_at_sec == info.started_at_sec &&
          read.started_at_nsec == info.started_at_nsec);

    OK(llmlb_lock_release(lock));
    CHECK(!exists(file));
    found = true;
    OK(llmlb_read_lock_info(PORT, &read, &found));
    CHECK(!found);
    llmlb_lock_free(lock);

    /* Freeing does the same. */
    llmlb_lock_free(acquire(PORT));
    CHECK(!exists(file));
}

static void a_second_server_is_refused_and_told_by_whom(void) {
    child_t holder = start_holder();
    CHECK(refused(PORT).pid == (uint32_t)holder.pid);
    char expected[256];
    snprintf(expected, sizeof expected, "Server already running on port %d (PID: %d, started: ",
             PORT, (int)holder.pid);
    CHECK(strncmp(message(), expected, strlen(expected)) == 0);
    CHECK(strstr(message(), "\n\nTo stop: llmlb stop --port 8000\n") != NULL);
    /* Another port is another lock. */
    llmlb_lock_free(acquire(PORT + 1));
    let_go(holder);
}

static void what_a_killed_server_leaves_behind_is_recovered(void) {
    child_t holder = start_holder();
    kill_child(holder);
    CHECK(exists(lock_file(PORT)));
    llmlb_lock_free(acquire(PORT));
}

static bool end_holder(void *child) {
    child_t *holder = (child_t *)child;
    if (holder->leash >= 0)
        close(holder->leash);
    holder->leash = -1;
    return false;
}

static bool always(void *calls) {
    ++*(int *)calls;
    return true;
}

static void a_wait_ends_when_the_holder_leaves(void) {
    child_t holder = start_holder();
    llmlb_acquire_options_t options = llmlb_acquire_options_default();
    options.timeout_ms = UINT64_MAX;
    options.interrupted = end_holder;
    options.user_data = &holder;
    llmlb_lock_t *lock;
    llmlb_lock_info_t info;
    OK(llmlb_lock_acquire_with(PORT, &options, &lock, &info));
    CHECK_EXITED(holder.pid);
    llmlb_lock_free(lock);
}

static void a_wait_ends_when_it_is_interrupted_or_too_long(void) {
    child_t holder = start_holder();
    int calls = 0;
    llmlb_acquire_options_t options = llmlb_acquire_options_default();
    options.timeout_ms = 3600000;
    options.interrupted = always;
    options.user_data = &calls;
    llmlb_lock_t *lock;
    llmlb_lock_info_t info;
    IS(LLMLB_INTERRUPTED, llmlb_lock_acquire_with(PORT, &options, &lock, &info));
    CHECK(calls == 1);

    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    IS(LLMLB_ALREADY_RUNNING, llmlb_lock_acquire_timeout(PORT, 30, &lock, &info));
    clock_gettime(CLOCK_MONOTONIC, &end);
    CHECK(info.pid == (uint32_t)holder.pid);
    CHECK((end.tv_sec - start.tv_sec) * 1000 + (end.tv_nsec - start.tv_nsec) / 1000000 >= 29);
    let_go(holder);
}

static void a_directory_of_the_callers_choice(void) {
    char chosen[300], path[400], default_path[400];
    size_t needed;
    snprintf(chosen, sizeof chosen, "%s/chosen", directory);
    OK(llmlb_lock_dir(path, sizeof path, &needed));
    CHECK(strcmp(path, directory) == 0);

    llmlb_acquire_options_t options = llmlb_acquire_options_default();
    options.directory = chosen;
    llmlb_lock_t *lock;
    llmlb_lock_info_t info;
    OK(llmlb_lock_acquire_with(PORT, &options, &lock, &info));
    IS(LLMLB_ALREADY_RUNNING, llmlb_lock_acquire_with(PORT, &options, &lock, &info));
    llmlb_lock_free(acquire(PORT)); /* is free in the other */

    OK(llmlb_lock_path_in(chosen, PORT, path, sizeof path, &needed));
    OK(llmlb_lock_path(PORT, default_path, sizeof default_path, &needed));
    CHECK(exists(path) && !exists(default_path));
    bool found = false;
    OK(llmlb_read_lock_info_in(chosen, PORT, &info, &found));
    CHECK(found && info.pid == (uint32_t)getpid());
    llmlb_server_t server;
    size_t count;
    OK(llmlb_list_servers_in(chosen, &server, 1, &count));
    CHECK(count == 1 && server.port == PORT);
    OK(llmlb_list_servers(NULL, 0, &count));
    CHECK(count == 0);
    llmlb_lock_free(lock);
    CHECK(rmdir(chosen) == 0);
}

static void servers_are_listed_with_their_state(void) {
    child_t dead = start_holder();
    kill_child(dead); /* PORT is stale */
    llmlb_lock_t *running = acquire(PORT + 1);
    CHECK(mkdir(lock_file(PORT + 2), 0700) == 0); /* unreadable */

    llmlb_server_t servers[4];
    memset(servers, 0x55, sizeof servers);
    size_t count = 0;
    IS(LLMLB_BUFFER_TOO_SMALL, llmlb_list_servers(NULL, 0, &count));
    CHECK(count == 3);
    IS(LLMLB_BUFFER_TOO_SMALL, llmlb_list_servers(servers, 2, &count));
    CHECK(count == 3 && servers[0].port == 0x5555);
    OK(llmlb_list_servers(servers, 4, &count));
    CHECK(count == 3 && servers[3].port == 0x5555);

    CHECK(servers[0].port == PORT && servers[0].state == LLMLB_SERVER_STALE);
    CHECK(servers[0].has_info && servers[0].info.pid == (uint32_t)dead.pid);
    CHECK(servers[1].port == PORT + 1 && servers[1].state == LLMLB_SERVER_RUNNING);
    CHECK(servers[1].has_info && servers[1].info.pid == (uint32_t)getpid());
    CHECK(servers[1].owner[0] == '\0');
    CHECK(servers[2].port == PORT + 2 && servers[2].state == LLMLB_SERVER_UNREADABLE);
    CHECK(!servers[2].has_info && servers[2].info.pid == 0 && servers[2].owner[0] != '\0');
    llmlb_lock_free(running);
}

static void processes_are_seen_and_stopped(void) {
    CHECK(llmlb_is_process_running((uint32_t)getpid()));
    CHECK(!llmlb_is_process_running(0) && !llmlb_is_process_running(UINT32_MAX));
    child_t child = start_holder();
    CHECK(llmlb_is_process_running((uint32_t)child.pid));
    OK(llmlb_stop_process((uint32_t)child.pid));
    int status = reap(child.pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    CHECK(!llmlb_is_process_running((uint32_t)child.pid));
    close(child.leash);
}

int main(int argc, char **argv) {
    (void)argc;
    CHECK(strlen(llmlb_version()) >= 5 && llmlb_abi_version() == LLMLB_ABI_VERSION);
    static const test_t tests[] = {
        TEST(a_port_is_guarded_until_its_release),
        TEST(a_second_server_is_refused_and_told_by_whom),
        TEST(what_a_killed_server_leaves_behind_is_recovered),
        TEST(a_wait_ends_when_the_holder_leaves),
        TEST(a_wait_ends_when_it_is_interrupted_or_too_long),
        TEST(a_directory_of_the_callers_choice),
        TEST(servers_are_listed_with_their_state),
        TEST(processes_are_seen_and_stopped),
    };
    return RUN(tests);
}
