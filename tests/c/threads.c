/* Threads that race for a port, share a handle, and each have their own last error. */
#include "test.h"

#include <pthread.h>

enum { THREADS = 8, ROUNDS = 50 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t opened = PTHREAD_COND_INITIALIZER;
static bool open_gate;

static void wait_at_gate(void) {
    pthread_mutex_lock(&mutex);
    while (!open_gate)
        pthread_cond_wait(&opened, &mutex);
    pthread_mutex_unlock(&mutex);
}

static void run_threads(void *(*body)(void *), void *each, size_t size) {
    pthread_t threads[THREADS];
    open_gate = false;
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, body, (char *)each + (size_t)i * size) == 0);
    pthread_mutex_lock(&mutex);
    open_gate = true;
    pthread_cond_broadcast(&opened);
    pthread_mutex_unlock(&mutex);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

typedef struct {
    llmlb_lock_t *lock;
    llmlb_lock_info_t holder;
    llmlb_result_t result;
} racer_t;

static void *race(void *arg) {
    racer_t *racer = (racer_t *)arg;
    wait_at_gate();
    racer->result = llmlb_lock_acquire(PORT, &racer->lock, &racer->holder);
    return NULL;
}

static void one_of_eight_threads_wins(void) {
    for (int round = 0; round < ROUNDS; round++) {
        racer_t racers[THREADS];
        memset(racers, 0, sizeof racers);
        run_threads(race, racers, sizeof *racers);
        int winners = 0;
        for (int i = 0; i < THREADS; i++) {
            if (racers[i].result == LLMLB_OK) {
                winners++;
                continue;
            }
            IS(LLMLB_ALREADY_RUNNING, racers[i].result);
            CHECK(racers[i].holder.pid == (uint32_t)getpid() && racers[i].holder.port == PORT);
        }
        CHECK(winners == 1);
        /* By another thread than the one that acquired. */
        for (int i = 0; i < THREADS; i++)
            llmlb_lock_free(racers[i].lock);
    }
}

static void *use(void *arg) {
    llmlb_lock_t *lock = *(llmlb_lock_t **)arg;
    wait_at_gate();
    for (int i = 0; i < ROUNDS; i++) {
        llmlb_lock_info_t info;
        OK(llmlb_lock_adopt(lock));
        OK(llmlb_lock_info(lock, &info));
        CHECK(info.pid == (uint32_t)getpid());
        OK(llmlb_lock_hand_over(lock, (uint32_t)getpid()));
        OK(llmlb_lock_verify(lock));
    }
    return NULL;
}

static void a_handle_is_shared(void) {
    llmlb_lock_t *lock = acquire(PORT), *shared[THREADS];
    for (int i = 0; i < THREADS; i++)
        shared[i] = lock;
    run_threads(use, shared, sizeof *shared);
    llmlb_lock_free(lock);
    CHECK(!exists(lock_file(PORT)));
}

static void *release(void *arg) {
    racer_t *racer = (racer_t *)arg;
    wait_at_gate();
    racer->result = llmlb_lock_release(racer->lock);
    return NULL;
}

static void one_of_eight_threads_releases(void) {
    llmlb_lock_t *lock = acquire(PORT);
    racer_t racers[THREADS];
    for (int i = 0; i < THREADS; i++)
        racers[i].lock = lock;
    run_threads(release, racers, sizeof *racers);
    int released = 0;
    for (int i = 0; i < THREADS; i++)
        released += racers[i].result == LLMLB_OK;
    CHECK(released == 1);
    llmlb_lock_free(lock);
}

static void *fail_differently(void *arg) {
    uint32_t *version = (uint32_t *)arg;
    char text[256], expected[64];
    size_t needed;
    wait_at_gate();
    OK(llmlb_last_error_message(text, sizeof text, &needed));
    CHECK(needed == 1 && text[0] == '\0');
    snprintf(expected, sizeof expected, "compiled for version %u ", *version);
    for (int i = 0; i < ROUNDS; i++) {
        IS(LLMLB_ABI_MISMATCH, llmlb_abi_check(*version));
        OK(llmlb_last_error_message(text, sizeof text, &needed));
        CHECK(strncmp(text, expected, strlen(expected)) == 0);
    }
    return NULL;
}

static void each_thread_has_its_own_last_error(void) {
    uint32_t versions[THREADS];
    for (uint32_t i = 0; i < THREADS; i++)
        versions[i] = 1000 + i;
    run_threads(fail_differently, versions, sizeof *versions);
}

int main(int argc, char **argv) {
    (void)argc;
    static const test_t tests[] = {
        TEST(one_of_eight_threads_wins),
        TEST(a_handle_is_shared),
        TEST(one_of_eight_threads_releases),
        TEST(each_thread_has_its_own_last_error),
    };
    return RUN(tests);
}
