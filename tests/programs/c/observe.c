// Writes what a C program can observe besides its task to `observed/ID.txt`, one `NAME: VALUE` per
// line.

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "task.h"

static FILE *report;

static int64_t nanoseconds(struct timespec at) {
    return (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
}

static int64_t now(clockid_t clock) {
    struct timespec at;
    clock_gettime(clock, &at);
    return nanoseconds(at);
}

static void random_numbers(void) {
    unsigned char bytes[16];
    fprintf(report, "random: ");
    if (getentropy(bytes, sizeof bytes)) fprintf(report, "none");
    for (size_t n = 0; n < sizeof bytes; n++) fprintf(report, "%02x", bytes[n]);
    fprintf(report, "\n");
}

static void times(void) {
    int64_t start = now(CLOCK_MONOTONIC);
    fprintf(report, "time: %" PRId64 "\n", now(CLOCK_REALTIME));
    struct timespec resolution;
    clock_getres(CLOCK_MONOTONIC, &resolution);
    fprintf(report, "resolution: %" PRId64 "\n", nanoseconds(resolution));
    nanosleep(&(struct timespec){0, 5000000}, NULL);
    fprintf(report, "slept: %" PRId64 "\n", now(CLOCK_MONOTONIC) - start);
    while (now(CLOCK_MONOTONIC) - start < 8000000) continue;
    fprintf(report, "waited: %" PRId64 "\n", now(CLOCK_MONOTONIC) - start);
}

static void state(const char *path) {
    struct stat is;
    if (stat(path, &is)) {
        fprintf(report, "%s: missing\n", path);
        return;
    }
    fprintf(report, "times of %s: %" PRId64 " %" PRId64 " %" PRId64 "\n", path,
            nanoseconds(is.st_atim), nanoseconds(is.st_mtim), nanoseconds(is.st_ctim));
    fprintf(report, "number of %s: %" PRIu64 "\n", path, (uint64_t)is.st_ino);
}

static void listing(const char *path) {
    DIR *directory = opendir(path);
    fprintf(report, "listing of %s:", path);
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        if (entry->d_name[0] != '.') fprintf(report, " %s", entry->d_name);
    }
    fprintf(report, "\n");
    if (directory) closedir(directory);
}

static void files(void) {
    static const char *const names[] = {"/outputs/b", "/outputs/a", "/outputs/c"};
    for (int n = 0; n < 3; n++) {
        FILE *file = fopen(names[n], "w");
        fprintf(file, "%0200d", n);
        fclose(file);
    }
    listing("/outputs");
    listing("/inputs/in");
    state("/inputs/in/1");
    state("/inputs/in/2");
    state("/inputs");
    for (int n = 0; n < 3; n++) {
        state(names[n]);
        unlink(names[n]);
    }
}

static void not_a_number(const char *name, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    fprintf(report, "not a number (%s): %016" PRIx64 "\n", name, bits);
}

static void not_numbers(void) {
    volatile double zero = 0, one = 1, marked;
    uint64_t bits = 0xfff8000000001234;
    memcpy((void *)&marked, &bits, sizeof bits);
    not_a_number("0/0", zero / zero);
    not_a_number("root", sqrt(-one));
    not_a_number("sum", marked + one);
}

bool exports_task_prepare(task_task_record_t *task, task_failure_t *err) { return true; }

bool exports_task_execute(task_task_record_t *task, task_outcome_t *ret, task_failure_t *err) {
    char path[64];
    mkdir("/outputs/observed", 0777);
    snprintf(path, sizeof path, "/outputs/observed/%" PRId64 ".txt", task->info.id);
    report = fopen(path, "w");
    random_numbers();
    times();
    files();
    not_numbers();
    fprintf(report, "address: %p\n", malloc(1));
    fclose(report);
    *ret = (task_outcome_t){.success = true};
    return true;
}

bool exports_task_finalize(task_task_record_t *task, task_outcome_t *outcome, task_failure_t *err) {
    return true;
}
