/* Strikes p1 at an exact place: right after its Nth journal event is written. Preloaded by tests/simulated/crash.rs, so
 * that p1 itself has no hook for tests. P1_CRASH is "HOW N MARK"; MARK is a file that says that it struck. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int at, count;
static char how[16], mark[512];

static int is(const char *path, const char *end) {
    size_t n = strlen(path), m = strlen(end);
    return n >= m && strcmp(path + n - m, end) == 0;
}

static int names(const char *link, const char *end) {
    char path[4096];
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return is(path, end);
}

__attribute__((constructor)) static void begin(void) {
    const char *wish = getenv("P1_CRASH");
    if (!wish || !names("/proc/self/exe", "/p1")) return;
    if (sscanf(wish, "%15s %d %511s", how, &at, mark) != 3) at = 0;
    /* What p1 runs is not to be struck. */
    unsetenv("LD_PRELOAD");
    unsetenv("P1_CRASH");
}

static void *again(void *signal) {
    usleep(150000);
    kill(getpid(), (int)(long)signal);
    return 0;
}

static void strike(void) {
    close(open(mark, O_CREAT | O_WRONLY, 0600));
    if (!strcmp(how, "KILL")) kill(getpid(), SIGKILL);
    if (!strcmp(how, "TERM")) kill(getpid(), SIGTERM);
    if (!strcmp(how, "INT")) kill(getpid(), SIGINT);
    if (!strcmp(how, "TWICE")) {
        pthread_t thread;
        kill(getpid(), SIGINT);
        pthread_create(&thread, 0, again, (void *)(long)SIGINT);
    }
    if (!strcmp(how, "HUP")) {
        /* The terminal is gone: nobody will ever read what is written from here on. */
        int ends[2];
        if (pipe(ends) == 0) {
            close(ends[0]);
            dup2(ends[1], 1);
            dup2(ends[1], 2);
        }
        kill(getpid(), SIGHUP);
    }
}

ssize_t write(int fd, const void *bytes, size_t n) {
    ssize_t done = syscall(SYS_write, fd, bytes, n);
    int error = errno;
    if (at > 0 && done > 0) {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        if (names(link, ".jsonl") && ++count == at) strike();
    }
    errno = error;
    return done;
}
