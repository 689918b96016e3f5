/* llmlb_stop_server, each of its outcomes. */
#include "test.h"

static llmlb_stop_outcome_t stop(uint64_t timeout_ms, bool force) {
    llmlb_stop_options_t options = llmlb_stop_options_default();
    CHECK(options.timeout_ms == 5000 && !options.force && !options.directory);
    options.timeout_ms = timeout_ms;
    options.force = force;
    llmlb_stop_outcome_t outcome;
    memset(&outcome, 0x55, sizeof outcome);
    OK(llmlb_stop_server(PORT, &options, &outcome));
    return outcome;
}

static void hold_port_and_ignore_sigterm(void) {
    signal(SIGTERM, SIG_IGN);
    hold_port();
}

static void a_server_that_obeys_is_stopped(void) {
    child_t server = start_holder();
    llmlb_stop_outcome_t outcome = stop(60000, false);
    CHECK(outcome.status == LLMLB_STOP_STOPPED && !outcome.forced);
    CHECK(outcome.has_info && outcome.info.pid == (uint32_t)server.pid);
    CHECK(!exists(lock_file(PORT)));
    CHECK(WTERMSIG(reap(server.pid)) == SIGTERM);
    close(server.leash);
}

static void a_server_that_does_not_is_killed_by_force_alone(void) {
    child_t server = start(hold_port_and_ignore_sigterm);
    llmlb_stop_outcome_t outcome = stop(50, false);
    CHECK(outcome.status == LLMLB_STOP_TIMED_OUT);
    CHECK(outcome.has_info && outcome.info.pid == (uint32_t)server.pid);
    CHECK(refused(PORT).pid == (uint32_t)server.pid);

    outcome = stop(50, true);
    CHECK(outcome.status == LLMLB_STOP_STOPPED && outcome.forced);
    CHECK(WTERMSIG(reap(server.pid)) == SIGKILL);
    CHECK(!exists(lock_file(PORT)));
    close(server.leash);
}

static void what_is_left_behind_is_cleaned_and_nothing_is_nothing(void) {
    child_t server = start_holder();
    kill_child(server);
    llmlb_stop_outcome_t outcome = stop(0, false);
    CHECK(outcome.status == LLMLB_STOP_STALE_CLEANED);
    CHECK(outcome.has_info && outcome.info.pid == (uint32_t)server.pid);
    CHECK(!exists(lock_file(PORT)));

    write_file(lock_file(PORT), "junk");
    outcome = stop(0, false);
    CHECK(outcome.status == LLMLB_STOP_STALE_CLEANED && !outcome.has_info);

    outcome = stop(0, false);
    CHECK(outcome.status == LLMLB_STOP_NOT_RUNNING && !outcome.has_info && !outcome.forced);
}

#ifdef __linux__
/* Becomes a worker of a server that is gone, and whose launcher is. */
static void work(const char *id) {
    char variable[512], *program[] = {(char *)"cat", NULL}, *environment[] = {variable, NULL};
    snprintf(variable, sizeof variable, "%s=%s", LLMLB_SERVER_ID_ENV, id);
    setsid();
    execve("/bin/cat", program, environment);
    _exit(127);
}

static void what_a_killed_server_has_left_running_is_ended(void) {
    int toward_worker[2], from_launcher[2];
    CHECK(pipe(toward_worker) == 0 && pipe(from_launcher) == 0);
    pid_t launcher = fork();
    CHECK(launcher >= 0);
    if (launcher == 0) {
        llmlb_lock_t *lock;
        llmlb_lock_info_t holder;
        char id[128];
        size_t needed;
        OK(llmlb_lock_acquire(PORT, &lock, &holder));
        IS(LLMLB_BUFFER_TOO_SMALL, llmlb_lock_server_id(lock, id, 4, &needed));
        CHECK(needed <= sizeof id);
        OK(llmlb_lock_server_id(lock, id, sizeof id, &needed));
        pid_t worker = fork();
        CHECK(worker >= 0);
        if (worker == 0) {
            close(toward_worker[1]);
            close(from_launcher[0]);
            close(from_launcher[1]);
            dup2(toward_worker[0], 0);
            work(id);
        }
        CHECK(write(from_launcher[1], &worker, sizeof worker) == sizeof worker);
        raise(SIGKILL);
    }
    pid_t worker;
    close(toward_worker[0]);
    CHECK(read(from_launcher[0], &worker, sizeof worker) == sizeof worker);
    CHECK(WTERMSIG(reap(launcher)) == SIGKILL);
    /* The worker shows its name only once it has become another program. */
    size_t ended = 0;
    while (ended == 0)
        OK(llmlb_end_left_overs(NULL, PORT, 60000, &ended));
    CHECK(ended == 1 && !llmlb_is_process_running((uint32_t)worker));
    OK(llmlb_end_left_overs(directory, PORT, 0, &ended));
    CHECK(ended == 0);
    CHECK(stop(0, false).status == LLMLB_STOP_STALE_CLEANED);
    close(toward_worker[1]);
    close(from_launcher[0]);
    close(from_launcher[1]);
}
#endif

static bool always(void *calls) {
    ++*(int *)calls;
    return true;
}

static void an_interrupted_stop_leaves_its_outcome_alone(void) {
    child_t server = start(hold_port_and_ignore_sigterm);
    int calls = 0;
    llmlb_stop_options_t options = llmlb_stop_options_default();
    options.timeout_ms = UINT64_MAX;
    options.interrupted = always;
    options.user_data = &calls;
    llmlb_stop_outcome_t outcome, untouched;
    memset(&outcome, 0x55, sizeof outcome);
    memset(&untouched, 0x55, sizeof untouched);
    IS(LLMLB_INTERRUPTED, llmlb_stop_server(PORT, &options, &outcome));
    CHECK(calls == 1 && memcmp(&outcome, &untouched, sizeof outcome) == 0);
    kill_child(server);
}

int main(int argc, char **argv) {
    (void)argc;
    static const test_t tests[] = {
        TEST(a_server_that_obeys_is_stopped),
        TEST(a_server_that_does_not_is_killed_by_force_alone),
        TEST(what_is_left_behind_is_cleaned_and_nothing_is_nothing),
#ifdef __linux__
        TEST(what_a_killed_server_has_left_running_is_ended),
#endif
        TEST(an_interrupted_stop_leaves_its_outcome_alone),
    };
    return RUN(tests);
}
