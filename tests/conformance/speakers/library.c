/* Speaks the protocol for the C library. */
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <llmlb_lock.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static llmlb_lock_t *held[65536];

static void fail(llmlb_result_t result)
{
    char message[2048] = "?";
    size_t needed;
    if (result == LLMLB_HELD_BY_UNKNOWN) {
        puts("held");
    } else if (result == LLMLB_CORRUPTED) {
        puts("corrupted");
    } else if (result == LLMLB_LOST) {
        puts("lost");
    } else {
        llmlb_last_error_message(message, sizeof message, &needed);
        message[strcspn(message, "\n")] = '\0';
        printf("error %s\n", message);
    }
}

static void acquire(uint16_t port)
{
    llmlb_lock_info_t holder;
    llmlb_result_t result = llmlb_lock_acquire(port, &held[port], &holder);
    if (result == LLMLB_OK)
        puts("acquired");
    else if (result == LLMLB_ALREADY_RUNNING)
        printf("refused %" PRIu32 "\n", holder.pid);
    else
        fail(result);
}

static void read_port(uint16_t port)
{
    llmlb_lock_info_t info;
    bool found;
    llmlb_result_t result = llmlb_read_lock_info(port, &info, &found);
    if (result != LLMLB_OK) {
        fail(result);
    } else if (!found) {
        puts("none");
    } else {
        char text[32];
        time_t seconds = (time_t)info.started_at_sec;
        strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", gmtime(&seconds));
        printf("info %" PRIu32 " %s.%09" PRIu32 "Z\n", info.pid, text, info.started_at_nsec);
    }
}

static void list(void)
{
    static llmlb_server_t servers[1024];
    size_t count;
    llmlb_result_t result = llmlb_list_servers(servers, 1024, &count);
    if (result != LLMLB_OK) {
        fail(result);
        return;
    }
    printf("list");
    for (size_t i = 0; i < count; i++)
        if (servers[i].state == LLMLB_SERVER_RUNNING)
            printf(" %d=%" PRIu32, (int)servers[i].port, servers[i].info.pid);
    puts("");
}

static void hand_over(uint16_t port, char *command)
{
    char *words[64];
    int count = 0;
    for (char *word = strtok(command, " \n"); word != NULL && count < 63; word = strtok(NULL, " \n"))
        words[count++] = word;
    words[count] = NULL;
    llmlb_child_hook_t *hook;
    llmlb_result_t result = llmlb_lock_child_hook(held[port], &hook);
    if (result != LLMLB_OK) {
        fail(result);
        return;
    }
    pid_t server = fork();
    if (server == 0) {
        if (llmlb_child_hook_run(hook) != LLMLB_OK || freopen("/dev/null", "r+", stdout) == NULL)
            _exit(125);
        execvp(words[0], words);
        _exit(127);
    }
    llmlb_child_hook_free(hook);
    result = llmlb_lock_hand_over(held[port], (uint32_t)server);
    if (result != LLMLB_OK)
        fail(result);
    else
        printf("handed %ld\n", (long)server);
}

int main(void)
{
    char line[4096];
    if (llmlb_abi_check(LLMLB_ABI_VERSION) != LLMLB_OK)
        return 1;
    while (fgets(line, sizeof line, stdin) != NULL) {
        char request[32] = "", *rest = strchr(line, ' ');
        sscanf(line, "%31s", request);
        char *command = NULL;
        uint16_t port = rest == NULL ? 0 : (uint16_t)strtol(rest, &command, 10);
        if (strcmp(request, "list") == 0) {
            list();
        } else if (strcmp(request, "acquire") == 0) {
            acquire(port);
        } else if (strcmp(request, "read") == 0) {
            read_port(port);
        } else if (held[port] == NULL) {
            puts("error nothing is held there");
        } else if (strcmp(request, "hold") == 0) {
            llmlb_result_t result = llmlb_lock_verify(held[port]);
            if (result == LLMLB_OK)
                puts("holding");
            else
                fail(result);
        } else if (strcmp(request, "release") == 0) {
            llmlb_result_t result = llmlb_lock_release(held[port]);
            llmlb_lock_free(held[port]);
            held[port] = NULL;
            if (result == LLMLB_OK)
                puts("released");
            else
                fail(result);
        } else if (strcmp(request, "hand_over") == 0) {
            hand_over(port, command);
        } else {
            puts("error no such request");
        }
        fflush(stdout);
    }
    return 0;
}
