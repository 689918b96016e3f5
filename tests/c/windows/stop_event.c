/* Windows: a server that listens for its stop event is asked to end, and has the time to. Runs
 * itself as that server. LLMLB_LOCK_DIR is a directory of the test's own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

#include "llmlb_lock.h"

#define PORT 8000
#define CHECK(what)                                                        \
    do {                                                                   \
        if (!(what)) {                                                     \
            char message[512] = "";                                        \
            size_t needed;                                                 \
            llmlb_last_error_message(message, sizeof message, &needed);    \
            fprintf(stderr, "line %d: %s: %s\n", __LINE__, #what, message); \
            exit(99);                                                      \
        }                                                                  \
    } while (0)

/* Exits with 7 when it was asked. */
static int serve(void)
{
    llmlb_stop_event_t *event, *second;
    llmlb_lock_t *lock;
    llmlb_lock_info_t holder;
    bool requested = true;
    void *handle = NULL;
    CHECK(llmlb_stop_event_listen(NULL) == LLMLB_NULL_ARGUMENT);
    CHECK(llmlb_stop_event_wait(NULL, 0, &requested) == LLMLB_NULL_ARGUMENT);
    CHECK(llmlb_stop_event_handle(NULL, &handle) == LLMLB_NULL_ARGUMENT);
    llmlb_stop_event_free(NULL);

    CHECK(llmlb_stop_event_listen(&event) == LLMLB_OK);
    CHECK(llmlb_stop_event_listen(&second) == LLMLB_INVALID_ARGUMENT);
    CHECK(llmlb_stop_event_wait(event, 0, NULL) == LLMLB_NULL_ARGUMENT);
    CHECK(llmlb_stop_event_handle(event, NULL) == LLMLB_NULL_ARGUMENT);
    CHECK(llmlb_stop_event_wait(event, 0, &requested) == LLMLB_OK && !requested);
    CHECK(llmlb_stop_event_wait(event, 10, &requested) == LLMLB_OK && !requested);
    CHECK(llmlb_stop_event_handle(event, &handle) == LLMLB_OK);
    CHECK(WaitForSingleObject(handle, 0) == WAIT_TIMEOUT);
    /* Whoever listens no longer can do so anew. */
    llmlb_stop_event_free(event);
    CHECK(llmlb_stop_event_listen(&event) == LLMLB_OK);

    CHECK(llmlb_lock_acquire(PORT, &lock, &holder) == LLMLB_OK);
    printf("ready\n");
    fflush(stdout);
    CHECK(llmlb_stop_event_wait(event, UINT64_MAX, &requested) == LLMLB_OK && requested);
    CHECK(llmlb_lock_release(lock) == LLMLB_OK);
    llmlb_lock_free(lock);
    llmlb_stop_event_free(event);
    return 7;
}

int main(int argc, char **argv)
{
    char command[MAX_PATH + 16], line[64] = "";
    llmlb_stop_options_t options = llmlb_stop_options_default();
    llmlb_stop_outcome_t outcome;
    FILE *server;
    CHECK(llmlb_abi_check(LLMLB_ABI_VERSION) == LLMLB_OK);
    if (argc > 1 && strcmp(argv[1], "serve") == 0)
        return serve();
    CHECK(strlen(llmlb_result_string(LLMLB_STOP_EVENT_FAILED)) > 0);
    snprintf(command, sizeof command, "\"%s\" serve", argv[0]);
    server = _popen(command, "r");
    CHECK(server && fgets(line, sizeof line, server) && strncmp(line, "ready", 5) == 0);
    options.timeout_ms = 60000;
    CHECK(llmlb_stop_server(PORT, &options, &outcome) == LLMLB_OK);
    CHECK(outcome.status == LLMLB_STOP_STOPPED && !outcome.forced);
    CHECK(_pclose(server) == 7);
    printf("stop_event passed\n");
    return 0;
}
