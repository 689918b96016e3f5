/*
 * Starts a server of any kind, one per port:  launcher PORT COMMAND [ARG...]
 *
 * The server inherits the lock and keeps the port guarded as long as it lives, though it knows
 * nothing of locks and this launcher is gone. `llmlb status` shows it, `llmlb stop` stops it.
 *
 *     cc launcher.c -o launcher $(pkg-config --cflags --libs llmlb_lock)
 *
 * Exits with 0 when the server has started, 1 when another guards the port, 2 on wrong usage, 3 on
 * another failure of the lock, and as a shell does (126, 127) when the command can't be run.
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <llmlb_lock.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void print_last_error(void)
{
    char message[1024];
    size_t needed;
    if (llmlb_last_error_message(message, sizeof message, &needed) != LLMLB_OK)
        strcpy(message, "unknown error"); /* does not fit */
    fprintf(stderr, "launcher: %s\n", message);
}

/* Becomes the server as soon as the lock is handed over; where that fails, tells the launcher. */
static void become_server(const char *port, const char *id, char **command, int launcher)
{
    char go;
    if (read(launcher, &go, 1) != 1)
        _exit(125); /* the launcher has failed, or was killed */
    /* Together, these let `llmlb stop` end workers that the server leaves behind. */
    setpgid(0, 0);
    setenv(LLMLB_GUARDED_PORT_ENV, port, 1);
    setenv(LLMLB_SERVER_ID_ENV, id, 1);
    execvp(command[0], command);
    int error = errno;
    send(launcher, &error, sizeof error, MSG_NOSIGNAL);
    _exit(127);
}

int main(int argc, char **argv)
{
    char *end = NULL;
    long port = argc > 2 ? strtol(argv[1], &end, 10) : 0;
    if (port < 1 || port > 65535 || *end != '\0') {
        fprintf(stderr, "usage: launcher PORT COMMAND [ARG...]\n");
        return 2;
    }
    if (llmlb_abi_check(LLMLB_ABI_VERSION) != LLMLB_OK) {
        print_last_error();
        return 3;
    }

    llmlb_lock_t *lock;
    llmlb_lock_info_t holder;
    llmlb_result_t result = llmlb_lock_acquire((uint16_t)port, &lock, &holder);
    if (result != LLMLB_OK) {
        print_last_error(); /* names the holder, and how to stop it */
        return result == LLMLB_ALREADY_RUNNING ? 1 : 3;
    }

    /* Tells the server to go, and back why it could not; a successful exec closes it. */
    int channel[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, channel) != 0 ||
        fcntl(channel[0], F_SETFD, FD_CLOEXEC) != 0 ||
        fcntl(channel[1], F_SETFD, FD_CLOEXEC) != 0) {
        perror("launcher");
        llmlb_lock_free(lock);
        return 3;
    }

    char id[128];
    size_t needed;
    result = llmlb_lock_server_id(lock, id, sizeof id, &needed);
    if (result == LLMLB_OK)
        result = llmlb_lock_set_inheritable(lock, true);
    if (result != LLMLB_OK) {
        print_last_error();
        llmlb_lock_free(lock);
        return 3;
    }
    pid_t server = fork();
    if (server == 0) {
        close(channel[0]);
        become_server(argv[1], id, argv + 2, channel[1]);
    }
    close(channel[1]);
    if (server < 0) {
        perror("launcher: fork");
        llmlb_lock_free(lock);
        return 3;
    }

    /* Before it runs, so that it can be found and stopped from its first moment. */
    result = llmlb_lock_hand_over(lock, (uint32_t)server);
    if (result != LLMLB_OK) {
        print_last_error();
        close(channel[0]); /* which ends the child */
        waitpid(server, NULL, 0);
        llmlb_lock_free(lock);
        return 3;
    }

    int error;
    send(channel[0], "", 1, MSG_NOSIGNAL);
    if (read(channel[0], &error, sizeof error) == (ssize_t)sizeof error) {
        fprintf(stderr, "launcher: %s: %s\n", argv[2], strerror(error));
        waitpid(server, NULL, 0);
        llmlb_lock_adopt(lock); /* takes it back, so that freeing it removes the file */
        llmlb_lock_free(lock);
        return error == ENOENT ? 127 : 126;
    }

    printf("Server on port %ld has PID %ld\n", port, (long)server);
    llmlb_lock_free(lock); /* closes our copy: the server has its own */
    return 0;
}
