/* NULL in every pointer of every function: a code where it may not be, no crash anywhere. */
#include "test.h"

#define IS_NULL(call) IS(LLMLB_NULL_ARGUMENT, call)

static void acquiring(void) {
    llmlb_lock_t *lock = NULL;
    llmlb_lock_info_t info;
    llmlb_acquire_options_t options = llmlb_acquire_options_default();
    IS_NULL(llmlb_lock_acquire(PORT, NULL, &info));
    IS_NULL(llmlb_lock_acquire(PORT, &lock, NULL));
    IS_NULL(llmlb_lock_acquire_timeout(PORT, 0, NULL, &info));
    IS_NULL(llmlb_lock_acquire_timeout(PORT, 0, &lock, NULL));
    IS_NULL(llmlb_lock_acquire_with(PORT, NULL, &lock, &info));
    IS_NULL(llmlb_lock_acquire_with(PORT, &options, NULL, &info));
    IS_NULL(llmlb_lock_acquire_with(PORT, &options, &lock, NULL));
    CHECK(!exists(lock_file(PORT)) && lock == NULL);
    /* NULL in the options is the default. */
    OK(llmlb_lock_acquire_with(PORT, &options, &lock, &info));
    llmlb_lock_free(lock);
}

static void handles(void) {
    llmlb_lock_info_t info;
    char buffer[512];
    size_t needed = 0;
    int fd;
    IS_NULL(llmlb_lock_info(NULL, &info));
    IS_NULL(llmlb_lock_file(NULL, buffer, sizeof buffer, &needed));
    IS_NULL(llmlb_lock_server_id(NULL, buffer, sizeof buffer, &needed));
    IS_NULL(llmlb_lock_fd(NULL, &fd));
    IS_NULL(llmlb_lock_set_inheritable(NULL, true));
    IS_NULL(llmlb_lock_hand_over(NULL, 1));
    IS_NULL(llmlb_lock_adopt(NULL));
    IS_NULL(llmlb_lock_verify(NULL));
    IS_NULL(llmlb_lock_release(NULL));
    llmlb_child_hook_t *hook;
    IS_NULL(llmlb_lock_child_hook(NULL, &hook));
    IS_NULL(llmlb_child_hook_run(NULL));
    llmlb_child_hook_free(NULL);
    llmlb_lock_free(NULL);

    llmlb_lock_t *lock = acquire(PORT);
    IS_NULL(llmlb_lock_info(lock, NULL));
    IS_NULL(llmlb_lock_file(lock, NULL, 1, &needed));
    CHECK(needed == 0);
    IS_NULL(llmlb_lock_file(lock, buffer, sizeof buffer, NULL));
    IS_NULL(llmlb_lock_fd(lock, NULL));
    IS_NULL(llmlb_lock_child_hook(lock, NULL));
    OK(llmlb_lock_verify(lock));
    llmlb_lock_free(lock);
}

static void functions(void) {
    llmlb_lock_info_t info;
    llmlb_server_t server;
    llmlb_stop_options_t options = llmlb_stop_options_default();
    llmlb_stop_outcome_t outcome;
    char buffer[512];
    size_t needed = 0;
    bool found;
    IS_NULL(llmlb_read_lock_info(PORT, NULL, &found));
    IS_NULL(llmlb_read_lock_info(PORT, &info, NULL));
    IS_NULL(llmlb_read_lock_info_in(NULL, PORT, &info, &found));
    IS_NULL(llmlb_read_lock_info_in(directory, PORT, NULL, &found));
    IS_NULL(llmlb_read_lock_info_in(directory, PORT, &info, NULL));
    IS_NULL(llmlb_list_servers(NULL, 1, &needed));
    IS_NULL(llmlb_list_servers(&server, 1, NULL));
    IS_NULL(llmlb_list_servers_in(NULL, &server, 1, &needed));
    IS_NULL(llmlb_list_servers_in(directory, NULL, 1, &needed));
    IS_NULL(llmlb_list_servers_in(directory, &server, 1, NULL));
    IS_NULL(llmlb_end_left_overs(directory, PORT, 0, NULL));
    IS_NULL(llmlb_stop_server(PORT, NULL, &outcome));
    IS_NULL(llmlb_stop_server(PORT, &options, NULL));
    IS_NULL(llmlb_lock_path(PORT, NULL, 1, &needed));
    IS_NULL(llmlb_lock_path(PORT, buffer, sizeof buffer, NULL));
    IS_NULL(llmlb_lock_path_in(NULL, PORT, buffer, sizeof buffer, &needed));
    IS_NULL(llmlb_lock_path_in(directory, PORT, NULL, 1, &needed));
    IS_NULL(llmlb_lock_path_in(directory, PORT, buffer, sizeof buffer, NULL));
    IS_NULL(llmlb_lock_dir(NULL, 1, &needed));
    IS_NULL(llmlb_lock_dir(buffer, sizeof buffer, NULL));
    IS_NULL(llmlb_last_error_message(NULL, 1, &needed));
    IS_NULL(llmlb_last_error_message(buffer, sizeof buffer, NULL));
    CHECK(needed == 0);
    CHECK(strcmp(message(), "needed must not be NULL") == 0);
    OK(llmlb_set_log_callback(NULL, NULL));
}

int main(int argc, char **argv) {
    (void)argc;
    static const test_t tests[] = {TEST(acquiring), TEST(handles), TEST(functions)};
    return RUN(tests);
}
