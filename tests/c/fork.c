/* Forks, exec with the lock inherited, and handing over. */
#include "test.h"

static char *program;

static void a_childs_copy_is_closed_and_nothing_else(void) {
    llmlb_lock_t *lock = acquire(PORT);
    for (int i = 0; i < 2; i++) {
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            if (i == 0)
                OK(llmlb_lock_release(lock));
            llmlb_lock_free(lock);
            _exit(0);
        }
        CHECK_EXITED(pid);
        OK(llmlb_lock_verify(lock));
        CHECK(refused(PORT).pid == (uint32_t)getpid());
    }
    llmlb_lock_free(lock);
    CHECK(!exists(lock_file(PORT)));
}

static llmlb_lock_t *inherited;

static void nothing(void) {
}

static void a_childs_copy_keeps_the_lock(void) {
    inherited = acquire(PORT);
    child_t child = start(nothing);
    OK(llmlb_lock_hand_over(inherited, (uint32_t)child.pid));
    llmlb_lock_info_t info;
    OK(llmlb_lock_info(inherited, &info));
    CHECK(info.pid == (uint32_t)child.pid);
    llmlb_lock_free(inherited);
    CHECK(refused(PORT).pid == (uint32_t)child.pid && is_locked(PORT));
    let_go(child);
    llmlb_lock_free(acquire(PORT)); /* what it left behind is recovered */
}

static void adopt(void) {
    OK(llmlb_lock_adopt(inherited));
}

static void a_daemon_adopts_the_lock(void) {
    channel_t ready = channel(), leash = channel();
    pid_t launcher = fork();
    CHECK(launcher >= 0);
    if (launcher == 0) {
        close(leash.write);
        inherited = acquire(PORT);
        pid_t daemon = fork();
        if (daemon != 0)
            _exit(daemon < 0);
        adopt();
        send_pid(ready.write, getpid());
        wait_for_close(leash.read);
        llmlb_lock_free(inherited);
        _exit(0);
    }
    close(ready.write);
    close(leash.read);
    CHECK_EXITED(launcher);
    pid_t daemon = receive_pid(ready.read);
    CHECK(refused(PORT).pid == (uint32_t)daemon && is_locked(PORT));
    close(leash.write);
    /* It clears up, as it owns the lock now: the pipe closes when it has. */
    wait_for_close(ready.read);
    close(ready.read);
    CHECK(!exists(lock_file(PORT)));
}

/* exec's this program as a server that does not know about locks. */
static child_t exec_server(const llmlb_child_hook_t *hook) {
    channel_t ready = channel(), leash = channel();
    child_t server;
    server.pid = fork();
    CHECK(server.pid >= 0);
    if (server.pid == 0) {
        dup2(leash.read, STDIN_FILENO);
        dup2(ready.write, STDOUT_FILENO);
        if (hook && llmlb_child_hook_run(hook) != LLMLB_OK)
            _exit(126);
        execl(program, program, "serve", (char *)NULL);
        _exit(127);
    }
    close(ready.write);
    close(leash.read);
    CHECK(receive_pid(ready.read) == server.pid);
    close(ready.read);
    server.leash = leash.write;
    return server;
}

static void an_inheritable_lock_goes_through_exec(void) {
    llmlb_lock_t *lock = acquire(PORT);
    OK(llmlb_lock_set_inheritable(lock, true));
    child_t server = exec_server(NULL);
    OK(llmlb_lock_set_inheritable(lock, false));
    OK(llmlb_lock_hand_over(lock, (uint32_t)server.pid));
    llmlb_lock_free(lock);
    CHECK(refused(PORT).pid == (uint32_t)server.pid && is_locked(PORT));
    let_go(server);
    llmlb_lock_free(acquire(PORT));
}

static void a_child_takes_the_lock_over_by_itself(void) {
    llmlb_lock_t *lock = acquire(PORT);
    llmlb_child_hook_t *hook;
    OK(llmlb_lock_child_hook(lock, &hook));
    child_t other = exec_server(NULL);
    child_t server = exec_server(hook);
    child_t another = exec_server(NULL);
    CHECK(refused(PORT).pid == (uint32_t)server.pid);
    llmlb_child_hook_free(hook);
    llmlb_lock_free(lock);
    CHECK(refused(PORT).pid == (uint32_t)server.pid && is_locked(PORT));
    let_go(server);
    llmlb_lock_free(acquire(PORT)); /* the others have not inherited it */
    let_go(other);
    let_go(another);
}

static void another_does_not(void) {
    llmlb_lock_t *lock = acquire(PORT);
    child_t server = exec_server(NULL);
    llmlb_lock_free(lock);
    llmlb_lock_free(acquire(PORT));
    let_go(server);
}

static void the_lock_outlives_a_killed_launcher(void) {
    channel_t ready = channel();
    pid_t launcher = fork();
    CHECK(launcher >= 0);
    if (launcher == 0) {
        llmlb_lock_t *lock = acquire(PORT);
        pid_t server = fork();
        if (server == 0) {
            for (;;)
                pause();
        }
        OK(llmlb_lock_hand_over(lock, (uint32_t)server));
        send_pid(ready.write, server);
        for (;;)
            pause();
    }
    close(ready.write);
    pid_t server = receive_pid(ready.read);
    CHECK(kill(launcher, SIGKILL) == 0 && WIFSIGNALED(reap(launcher)));
    CHECK(refused(PORT).pid == (uint32_t)server && is_locked(PORT));

    llmlb_stop_options_t options = llmlb_stop_options_default();
    llmlb_stop_outcome_t outcome;
    options.timeout_ms = 60000;
    OK(llmlb_stop_server(PORT, &options, &outcome));
    CHECK(outcome.status == LLMLB_STOP_STOPPED && outcome.info.pid == (uint32_t)server);
    wait_for_close(ready.read); /* it really is gone */
    close(ready.read);
    CHECK(!exists(lock_file(PORT)));
}

int main(int argc, char **argv) {
    program = argv[0];
    if (argc > 1) {
        send_pid(STDOUT_FILENO, getpid());
        wait_for_close(STDIN_FILENO);
        return 0;
    }
    static const test_t tests[] = {
        TEST(a_childs_copy_is_closed_and_nothing_else),
        TEST(a_childs_copy_keeps_the_lock),
        TEST(a_daemon_adopts_the_lock),
        TEST(an_inheritable_lock_goes_through_exec),
        TEST(a_child_takes_the_lock_over_by_itself),
        TEST(another_does_not),
        TEST(the_lock_outlives_a_killed_launcher),
    };
    return RUN(tests);
}
