/* The log callback. */
#include "test.h"

static char logged[4096];
static int levels;
static llmlb_result_t changed_inside;

static void append(llmlb_log_level_t level, const char *text, void *user_data) {
    CHECK(user_data == &levels);
    levels |= 1 << level;
    size_t len = strlen(logged);
    snprintf(logged + len, sizeof logged - len, "%s\n", text);
    changed_inside = llmlb_set_log_callback(NULL, NULL);
    /* What the library logs in here is dropped, or this would never end. */
    llmlb_lock_free(acquire(PORT + 1));
}

static void never(llmlb_log_level_t level, const char *text, void *user_data) {
    (void)level, (void)user_data;
    fail(__FILE__, __LINE__, text);
}

static void messages_reach_the_callback_that_is_set(void) {
    llmlb_lock_free(acquire(PORT));
    CHECK(logged[0] == '\0'); /* none is set */

    child_t dead = start_holder();
    kill_child(dead);
    OK(llmlb_set_log_callback(append, &levels));
    llmlb_lock_free(acquire(PORT));
    char expected[512];
    snprintf(expected, sizeof expected,
             "Stale lock file detected (PID %d not running), cleaning up port %d\n"
             "Lock acquired for port %d (PID: %d)\n"
             "Lock released for port %d\n",
             (int)dead.pid, PORT, PORT, (int)getpid(), PORT);
    CHECK(strcmp(logged, expected) == 0);
    CHECK(levels == (1 << LLMLB_LOG_WARN | 1 << LLMLB_LOG_DEBUG));
    IS(LLMLB_INVALID_ARGUMENT, changed_inside);

    OK(llmlb_set_log_callback(never, NULL));
    OK(llmlb_set_log_callback(NULL, NULL));
    llmlb_lock_free(acquire(PORT));
    CHECK(strcmp(logged, expected) == 0);
}

int main(int argc, char **argv) {
    (void)argc;
    static const test_t tests[] = {TEST(messages_reach_the_callback_that_is_set)};
    return RUN(tests);
}
