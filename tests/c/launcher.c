/* examples/c/launcher.c, with this program as the server: LLMLB_LAUNCHER says where the launcher
 * is, LLMLB_BIN where the command-line tool is that stops servers. Without it the library does. */
#include "test.h"

static char *program;

/* Runs a command with its output in `text`; its exit code. */
static int run(char *const *command, char *text, size_t size) {
    channel_t output = channel();
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        dup2(output.write, STDOUT_FILENO);
        dup2(output.write, STDERR_FILENO);
        execv(command[0], command);
        _exit(125);
    }
    int status = reap(pid);
    close(output.write); /* the server may have it yet: what is there now is all there is */
    ssize_t len = 0;
    if (fcntl(output.read, F_SETFL, O_NONBLOCK) == 0)
        len = read(output.read, text, size - 1);
    text[len > 0 ? len : 0] = '\0';
    close(output.read);
    CHECK(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int launch(const char *command, int ready, char *text, size_t size) {
    char fd[16], port[] = "8000", serve[] = "serve";
    snprintf(fd, sizeof fd, "%d", ready);
    char *const launcher[] = {getenv("LLMLB_LAUNCHER"), port, (char *)command, serve, fd, NULL};
    return run(launcher, text, size);
}

static void stop(pid_t server) {
    char *tool = getenv("LLMLB_BIN");
    if (tool && *tool) {
        char text[4096], verb[] = "stop", option[] = "--port", port[] = "8000";
        char *const command[] = {tool, verb, option, port, NULL};
        int code = run(command, text, sizeof text);
        if (code != 0)
            fail(__FILE__, __LINE__, text);
        return;
    }
    llmlb_stop_options_t options = llmlb_stop_options_default();
    llmlb_stop_outcome_t outcome;
    OK(llmlb_stop_server(PORT, &options, &outcome));
    CHECK(outcome.status == LLMLB_STOP_STOPPED && outcome.info.pid == (uint32_t)server);
}

static void a_server_stays_guarded_without_its_launcher(void) {
    char text[4096], expected[256];
    channel_t ready = channel();
    CHECK(fcntl(ready.write, F_SETFD, 0) == 0);
    int code = launch(program, ready.write, text, sizeof text);
    if (code != 0)
        fail(__FILE__, __LINE__, text);
    CHECK(fcntl(ready.write, F_SETFD, FD_CLOEXEC) == 0);
    pid_t server = receive_pid(ready.read);
    snprintf(expected, sizeof expected, "Server on port 8000 has PID %d\n", (int)server);
    CHECK(strcmp(text, expected) == 0);
    CHECK(refused(PORT).pid == (uint32_t)server && is_locked(PORT));

    CHECK(launch(program, ready.write, text, sizeof text) == 1);
    snprintf(expected, sizeof expected,
             "launcher: Server already running on port 8000 (PID: %d, started: ", (int)server);
    CHECK(strncmp(text, expected, strlen(expected)) == 0);

    close(ready.write);
    stop(server);
    wait_for_close(ready.read); /* the server and all it started are gone */
    close(ready.read);
    CHECK(!exists(lock_file(PORT)));
}

static void a_command_that_cannot_run_leaves_nothing(void) {
    char text[4096];
    CHECK(launch("/nonexistent/server", 0, text, sizeof text) == 127);
    CHECK(strcmp(text, "launcher: /nonexistent/server: No such file or directory\n") == 0);
    CHECK(launch(directory, 0, text, sizeof text) == 126);
    CHECK(!exists(lock_file(PORT)));
}

static void wrong_usage(void) {
    char text[4096], zero[] = "0", command[] = "true";
    char *const port_0[] = {getenv("LLMLB_LAUNCHER"), zero, command, NULL};
    CHECK(run(port_0, text, sizeof text) == 2);
    char *const no_command[] = {getenv("LLMLB_LAUNCHER"), NULL};
    CHECK(run(no_command, text, sizeof text) == 2);
    CHECK(strcmp(text, "usage: launcher PORT COMMAND [ARG...]\n") == 0);
}

int main(int argc, char **argv) {
    program = argv[0];
    if (argc > 2) {
        CHECK(getenv(LLMLB_GUARDED_PORT_ENV) && strcmp(getenv(LLMLB_GUARDED_PORT_ENV), "8000") == 0);
        send_pid(atoi(argv[2]), getpid());
        for (;;)
            pause();
    }
    CHECK(getenv("LLMLB_LAUNCHER") != NULL);
    static const test_t tests[] = {
        TEST(a_server_stays_guarded_without_its_launcher),
        TEST(a_command_that_cannot_run_leaves_nothing),
        TEST(wrong_usage),
    };
    return RUN(tests);
}
