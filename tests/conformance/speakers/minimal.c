/* Speaks the protocol for examples/c/minimal_holder.c, which knows neither reading nor lists. */
#define main minimal_holder_main
#include "../../../examples/c/minimal_holder.c"
#undef main

static struct { int fd; char path[4096]; } held[65536];

int main(void)
{
    char line[4096], request[32];
    while (fgets(line, sizeof line, stdin) != NULL) {
        long holder = 0;
        int port = 0;
        sscanf(line, "%31s %d", request, &port);
        if (port < 1 || port > 65535 || !llmlb_lock_path(port, held[port].path, sizeof held[port].path)) {
            puts("error no such port");
        } else if (strcmp(request, "acquire") == 0) {
            int fd = llmlb_hold(held[port].path, port, &holder);
            if (fd >= 0) {
                held[port].fd = fd;
                puts("acquired");
            } else if (errno != EWOULDBLOCK) {
                printf("error %s: %s\n", held[port].path, strerror(errno));
            } else if (holder != 0) {
                printf("refused %ld\n", holder);
            } else {
                puts("held");
            }
        } else if (held[port].fd == 0) {
            puts("error nothing is held there");
        } else if (strcmp(request, "hold") == 0) {
            puts(llmlb_still_held(held[port].fd, held[port].path) ? "holding" : "lost");
        } else if (strcmp(request, "release") == 0) {
            llmlb_let_go(held[port].fd, held[port].path);
            held[port].fd = 0;
            puts("released");
        } else {
            puts("error no such request");
        }
        fflush(stdout);
    }
    return 0;
}
