// Checks whether files behave as a C program expects: stdio, and the calls of unistd.h, fcntl.h,
// dirent.h and sys/stat.h. Leaves `report.txt`: the number of checks, and the name of each failed
// check.

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "task.h"

#define LARGE 200000

static int checked;
static FILE *report;

static void expect(const char *name, bool holds) {
    checked++;
    if (!holds) fprintf(report, "%s (errno: %s)\n", name, strerror(errno));
}

static void fails(const char *name, bool failed, int want) {
    int got = errno;
    checked++;
    if (!failed) {
        fprintf(report, "%s: worked, and should fail with %s\n", name, strerror(want));
    } else if (got != want) {
        fprintf(report, "%s: failed with %s", name, strerror(got));
        fprintf(report, ", not with %s\n", strerror(want));
    }
}

// The name of a check contains its call.
#define EXPECT(holds) (errno = 0, expect(#holds, holds))
#define FAILS(call, want) (errno = 0, fails(#call, (call) < 0, want))
#define NONE(call, want) (errno = 0, fails(#call, (call) == NULL, want))

static void put(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    if (!file || fputs(text, file) < 0 || fclose(file)) {
        fprintf(report, "writing %s: %s\n", path, strerror(errno));
    }
}

// Returns the text of a small file. The next call overwrites the text.
static const char *get(const char *path) {
    static char text[4096];
    FILE *file = fopen(path, "r");
    if (!file) return strerror(errno);
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    return text;
}

static bool is(const char *path, const char *text) { return !strcmp(get(path), text); }

static bool exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

static off_t size_of(const char *path) {
    struct stat st;
    return stat(path, &st) ? -1 : st.st_size;
}

static int later(struct timespec a, struct timespec b) {
    return a.tv_sec > b.tv_sec || (a.tv_sec == b.tv_sec && a.tv_nsec > b.tv_nsec);
}

// The number of entries without `.` and `..`.
static int entries(const char *path) {
    DIR *dir = opendir(path);
    if (!dir) return -1;
    int count = 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) count++;
    }
    closedir(dir);
    return count;
}

static void inputs_are_read(void) {
    char text[64];
    FILE *file = fopen("/inputs/in/hello.txt", "r");
    EXPECT(file != NULL);
    if (!file) return;
    EXPECT(fgets(text, sizeof text, file) && !strcmp(text, "hello, world\n"));
    EXPECT(fgetc(file) == EOF && feof(file));
    EXPECT(fseek(file, 7, SEEK_SET) == 0 && fgetc(file) == 'w' && ftell(file) == 8);
    EXPECT(fseek(file, -6, SEEK_END) == 0 && fgetc(file) == 'w');
    EXPECT(fseek(file, -3, SEEK_CUR) == 0 && fgetc(file) == ',');
    EXPECT(ungetc('!', file) == '!' && fgetc(file) == '!' && fgetc(file) == ' ');
    rewind(file);
    EXPECT(fread(text, 1, sizeof text, file) == 13);
    fclose(file);
    EXPECT(is("/inputs/in/empty.dat", ""));

    int fd = open("/inputs/in/large.bin", O_RDONLY);
    EXPECT(fd >= 0);
    EXPECT(lseek(fd, 0, SEEK_END) == LARGE && lseek(fd, 0, SEEK_SET) == 0);
    unsigned char bytes[7919];
    long total = 0, wrong = 0;
    for (ssize_t got; (got = read(fd, bytes, sizeof bytes)) > 0; total += got) {
        for (ssize_t i = 0; i < got; i++) wrong += bytes[i] != (total + i) % 251;
    }
    EXPECT(total == LARGE && wrong == 0);
    EXPECT(pread(fd, bytes, 100, 123456) == 100 && bytes[0] == 123456 % 251);
    EXPECT(pread(fd, bytes, 100, LARGE - 5) == 5 && pread(fd, bytes, 100, LARGE) == 0);
    EXPECT(lseek(fd, 0, SEEK_CUR) == LARGE);
    FAILS(lseek(fd, -1, SEEK_SET), EINVAL);
    // The error is not EBADF, because the file itself is read-only, and not only the descriptor.
    FAILS(write(fd, "x", 1), EPERM);
    close(fd);
    FAILS(read(fd, bytes, 1), EBADF);

    struct stat a, b;
    EXPECT(stat("/inputs/in/large.bin", &a) == 0 && lstat("/inputs/in/large.bin", &b) == 0);
    EXPECT(S_ISREG(a.st_mode) && a.st_size == LARGE && a.st_nlink == 1);
    EXPECT(a.st_ino == b.st_ino && a.st_dev == b.st_dev);
    EXPECT(stat("/inputs/in", &a) == 0 && S_ISDIR(a.st_mode));
    EXPECT(stat("/inputs/in/../in/./hello.txt", &a) == 0 && a.st_size == 13);
    EXPECT(entries("/inputs/in") == 3 && entries("/inputs") == 1);
    FAILS(open("/inputs/in/none", O_RDONLY), ENOENT);
    FAILS(open("/inputs/in/hello.txt/x", O_RDONLY), ENOTDIR);
    FAILS(open("/inputs/in/hello.txt", O_RDONLY | O_DIRECTORY), ENOTDIR);
    // The error comes from the C library, which knows only two directories.
    NONE(fopen("/etc/passwd", "r"), ENOTCAPABLE);
    NONE(fopen("/inputs/../etc/passwd", "r"), EPERM);
    NONE(opendir("/inputs/in/hello.txt"), ENOTDIR);
}

static void inputs_can_not_be_changed(void) {
    FAILS(open("/inputs/in/hello.txt", O_WRONLY), EPERM);
    FAILS(open("/inputs/in/hello.txt", O_RDWR | O_APPEND), EPERM);
    FAILS(open("/inputs/in/hello.txt", O_RDONLY | O_TRUNC), EPERM);
    FAILS(open("/inputs/new", O_RDWR | O_CREAT, 0666), EPERM);
    NONE(fopen("/inputs/in/hello.txt", "a"), EPERM);
    FAILS(unlink("/inputs/in/hello.txt"), EPERM);
    FAILS(rename("/inputs/in/hello.txt", "/inputs/in/other"), EPERM);
    FAILS(rename("/inputs/in/hello.txt", "/outputs/hello.txt"), EPERM);
    FAILS(mkdir("/inputs/dir", 0777), EPERM);
    FAILS(rmdir("/inputs/in"), EPERM);
    struct timespec times[2] = {{1, 0}, {2, 0}};
    FAILS(utimensat(AT_FDCWD, "/inputs/in/hello.txt", times, 0), EPERM);
    int fd = open("/inputs/in/hello.txt", O_RDONLY);
    FAILS(ftruncate(fd, 0), EPERM);
    close(fd);
    EXPECT(is("/inputs/in/hello.txt", "hello, world\n"));
}

static void bytes_are_written(void) {
    char text[64];
    put("a.txt", "one two three");
    EXPECT(is("a.txt", "one two three"));
    FILE *file = fopen("a.txt", "r+");
    EXPECT(fseek(file, 4, SEEK_SET) == 0 && fputs("TWO", file) >= 0 && fflush(file) == 0);
    EXPECT(is("a.txt", "one TWO three"));
    EXPECT(fseek(file, 0, SEEK_SET) == 0 && fgets(text, 4, file) && !strcmp(text, "one"));
    fclose(file);
    file = fopen("a.txt", "a+");
    EXPECT(fputs("!", file) >= 0 && fseek(file, 0, SEEK_SET) == 0);
    EXPECT(fgets(text, 4, file) && !strcmp(text, "one"));
    EXPECT(fseek(file, 0, SEEK_SET) == 0 && fputs("?", file) >= 0 && fclose(file) == 0);
    EXPECT(is("a.txt", "one TWO three!?"));
    file = fopen("a.txt", "w+");
    EXPECT(size_of("a.txt") == 0 && fputs("new", file) >= 0 && fclose(file) == 0);
    NONE(fopen("a.txt", "wx"), EEXIST);
    NONE(fopen("none.txt", "r+"), ENOENT);
    EXPECT((file = fopen("b.txt", "wx")) && fclose(file) == 0 && size_of("b.txt") == 0);

    int fd = open("c.bin", O_RDWR | O_CREAT | O_EXCL, 0666);
    EXPECT(fd >= 0 && write(fd, "0123456789", 10) == 10 && lseek(fd, 0, SEEK_CUR) == 10);
    FAILS(open("c.bin", O_RDWR | O_CREAT | O_EXCL, 0666), EEXIST);
    EXPECT(pwrite(fd, "xy", 2, 3) == 2 && lseek(fd, 0, SEEK_CUR) == 10);
    EXPECT(pread(fd, text, 10, 0) == 10 && !memcmp(text, "012xy56789", 10));
    EXPECT(ftruncate(fd, 4) == 0 && size_of("c.bin") == 4 && lseek(fd, 0, SEEK_CUR) == 10);
    EXPECT(ftruncate(fd, 6) == 0 && pread(fd, text, 10, 0) == 6 && !memcmp(text, "012x\0\0", 6));
    EXPECT(lseek(fd, 10, SEEK_SET) == 10 && size_of("c.bin") == 6);
    EXPECT(write(fd, "end", 3) == 3 && size_of("c.bin") == 13);
    EXPECT(pread(fd, text, 20, 4) == 9 && !memcmp(text, "\0\0\0\0\0\0end", 9));
    struct iovec parts[2] = {{"ab", 2}, {"cde", 3}};
    EXPECT(lseek(fd, 0, SEEK_SET) == 0 && writev(fd, parts, 2) > 0);
    EXPECT(fsync(fd) == 0 && fdatasync(fd) == 0);
    FAILS(ftruncate(fd, -1), EINVAL);
    FAILS(lseek(fd, -1, SEEK_SET), EINVAL);
    FAILS(lseek(fd, 0, 77), EINVAL);
    close(fd);

    fd = open("d.txt", O_WRONLY | O_CREAT | O_APPEND, 0666);
    int other = open("d.txt", O_WRONLY);
    EXPECT(write(fd, "one", 3) == 3 && lseek(fd, 0, SEEK_SET) == 0 && write(fd, "two", 3) == 3);
    EXPECT(pwrite(other, "more", 4, 6) == 4 && write(fd, "!", 1) == 1);
    EXPECT(is("d.txt", "onetwomore!"));
    EXPECT((fcntl(fd, F_GETFL) & O_APPEND) && (fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY);
    FAILS(read(fd, text, 1), EBADF);
    close(fd);
    EXPECT(fcntl(other, F_SETFL, O_APPEND) == 0 && write(other, "?", 1) == 1);
    EXPECT(is("d.txt", "onetwomore!?"));
    close(other);
    EXPECT((fd = open("d.txt", O_WRONLY | O_TRUNC)) >= 0 && size_of("d.txt") == 0);
    EXPECT(posix_fallocate(fd, 0, 10) == ENOTSUP);
    close(fd);
    fd = open("d.txt", O_RDONLY);
    FAILS(ftruncate(fd, 1), EINVAL);
    close(fd);

    // Writes a large file in pieces that are not aligned with any buffer.
    static unsigned char large[LARGE];
    for (int i = 0; i < LARGE; i++) large[i] = i % 253;
    file = fopen("large.bin", "wb+");
    size_t done = 0;
    for (size_t piece = 1; done < LARGE; piece = piece * 3 % 7919) {
        size_t most = LARGE - done;
        done += fwrite(large + done, 1, piece < most ? piece : most, file);
    }
    EXPECT(fflush(file) == 0 && size_of("large.bin") == LARGE);
    static unsigned char back[LARGE + 1];
    rewind(file);
    EXPECT(fread(back, 1, LARGE + 1, file) == LARGE && !memcmp(back, large, LARGE));
    EXPECT(fseek(file, 100001, SEEK_SET) == 0 && fgetc(file) == 100001 % 253);
    fclose(file);
    EXPECT(truncate("large.bin", 1000) == 0 && size_of("large.bin") == 1000);
}

static void entries_are_made_and_removed(void) {
    struct stat st;
    put("file", "x");
    EXPECT(mkdir("dir", 0777) == 0 && stat("dir", &st) == 0 && S_ISDIR(st.st_mode));
    EXPECT(mkdir("dir/sub/", 0777) == 0);
    FAILS(mkdir("dir", 0777), EEXIST);
    FAILS(mkdir("file", 0777), EEXIST);
    FAILS(mkdir("none/dir", 0777), ENOENT);
    FAILS(mkdir("file/dir", 0777), ENOTDIR);
    FAILS(rmdir("dir"), ENOTEMPTY);
    FAILS(rmdir("file"), ENOTDIR);
    FAILS(rmdir("none"), ENOENT);
    FAILS(unlink("none"), ENOENT);
    FAILS(unlink("dir"), EISDIR);
    FAILS(unlink("file/"), ENOTDIR);
    FAILS(open("dir", O_WRONLY), EISDIR);
    FAILS(open("dir", O_RDWR | O_CREAT, 0666), EISDIR);
    FAILS(open("file", O_RDONLY | O_DIRECTORY), ENOTDIR);
    FAILS(open("new/", O_WRONLY | O_CREAT, 0666), EISDIR);
    FAILS(open("none/new", O_WRONLY | O_CREAT, 0666), ENOENT);
    char name[300];
    memset(name, 'n', sizeof name - 1);
    name[256] = 0;
    FAILS(open(name, O_WRONLY | O_CREAT, 0666), ENAMETOOLONG);
    FAILS(mkdir(name, 0777), ENAMETOOLONG);
    FAILS(stat(name, &st), ENAMETOOLONG);
    name[255] = 0;
    EXPECT(mkdir(name, 0777) == 0 && rmdir(name) == 0);
    FAILS(open("line\nbreak", O_WRONLY | O_CREAT, 0666), EILSEQ);
    FAILS(symlink("file", "link"), EPERM);
    FAILS(link("file", "link"), EPERM);
    FAILS(readlink("file", name, sizeof name), EINVAL);
    FAILS(readlink("none", name, sizeof name), ENOENT);
    char byte;
    int fd = open("dir", O_RDONLY | O_DIRECTORY);
    EXPECT(fd >= 0 && fstat(fd, &st) == 0 && S_ISDIR(st.st_mode));
    FAILS(read(fd, &byte, 1), EBADF);
    int below = openat(fd, "below", O_RDWR | O_CREAT, 0666);
    EXPECT(below >= 0 && exists("dir/below") && faccessat(fd, "below", R_OK, 0) == 0);
    EXPECT(mkdirat(fd, "d", 0777) == 0 && fstatat(fd, "d", &st, 0) == 0 && S_ISDIR(st.st_mode));
    EXPECT(renameat(fd, "below", fd, "other") == 0 && unlinkat(fd, "other", 0) == 0);
    EXPECT(unlinkat(fd, "d", AT_REMOVEDIR) == 0);
    close(below);
    close(fd);
    EXPECT(rmdir("dir/sub") == 0 && remove("dir") == 0 && remove("file") == 0);
    EXPECT(!exists("dir") && !exists("file"));
}

static void entries_are_renamed(void) {
    struct stat before, after;
    mkdir("empty", 0777);
    mkdir("full", 0777);
    mkdir("full/sub", 0777);
    put("old", "old");
    put("new", "new");
    stat("old", &before);
    FAILS(rename("none", "x"), ENOENT);
    FAILS(rename("old", "none/x"), ENOENT);
    FAILS(rename("old", "empty"), EISDIR);
    FAILS(rename("empty", "old"), ENOTDIR);
    FAILS(rename("empty", "full"), ENOTEMPTY);
    FAILS(rename("full", "full/sub/x"), EINVAL);
    FAILS(rename("full", "full/x"), EINVAL);
    FAILS(rename("old", "new/x"), ENOTDIR);
    EXPECT(rename("old", "old") == 0 && is("old", "old"));
    EXPECT(rename("old", "new") == 0 && is("new", "old") && !exists("old"));
    EXPECT(stat("new", &after) == 0 && after.st_ino == before.st_ino);
    EXPECT(!later(before.st_ctim, after.st_ctim));
    EXPECT(rename("full", "empty") == 0 && exists("empty/sub") && !exists("full"));
    EXPECT(rename("new", "empty/sub/new") == 0 && is("empty/sub/new", "old"));
    EXPECT(rename("empty/sub", "sub") == 0 && is("sub/new", "old") && rmdir("empty") == 0);
    EXPECT(unlink("sub/new") == 0 && rmdir("sub") == 0);

    // A file that is removed or replaced while it is open.
    char text[16];
    int fd = open("gone", O_RDWR | O_CREAT, 0666);
    EXPECT(write(fd, "still", 5) == 5 && unlink("gone") == 0 && !exists("gone"));
    FAILS(unlink("gone"), ENOENT);
    put("gone", "another");
    EXPECT(write(fd, " here", 5) == 5 && pread(fd, text, 16, 0) == 10);
    EXPECT(!memcmp(text, "still here", 10) && is("gone", "another"));
    EXPECT(fstat(fd, &before) == 0 && before.st_size == 10);
    EXPECT(stat("gone", &after) == 0 && after.st_ino != before.st_ino);
    close(fd);
    fd = open("gone", O_RDONLY);
    put("replacement", "replaced");
    EXPECT(rename("replacement", "gone") == 0 && is("gone", "replaced"));
    EXPECT(pread(fd, text, 16, 0) == 7 && !memcmp(text, "another", 7));
    close(fd);
    EXPECT(unlink("gone") == 0);
}

static int sorts_last(const struct dirent *entry) { return entry->d_name[0] == '2'; }

static void directories_are_listed(void) {
    char path[32];
    static bool seen[300];
    mkdir("many", 0777);
    mkdir("many/dir", 0777);
    for (int n = 0; n < 300; n++) {
        sprintf(path, "many/%d", n);
        put(path, "");
    }
    EXPECT(entries("many") == 301);
    DIR *dir = opendir("many");
    EXPECT(dir != NULL && dirfd(dir) >= 0);
    if (!dir) return;
    int files = 0, dirs = 0, twice = 0, others = 0;
    long middle = 0;
    char next[32] = "";
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_type == DT_DIR) {
            dirs += !strcmp(entry->d_name, "dir");
        } else if (entry->d_type == DT_REG) {
            int n = atoi(entry->d_name);
            twice += seen[n];
            seen[n] = true;
            if (files == 150) strcpy(next, entry->d_name);
            if (++files == 150) middle = telldir(dir);
        } else {
            others++;
        }
    }
    EXPECT(files == 300 && dirs == 1 && twice == 0 && others == 0);
    seekdir(dir, middle);
    struct dirent *entry = readdir(dir);
    EXPECT(entry && !strcmp(entry->d_name, next));

    // Removes each entry when it is read, as `rm -r` does.
    rewinddir(dir);
    int removed = 0;
    while ((entry = readdir(dir))) {
        if (entry->d_type == DT_REG && unlinkat(dirfd(dir), entry->d_name, 0) == 0) removed++;
    }
    EXPECT(removed == 300);
    put("many/21", "");
    put("many/20", "");
    put("many/1", "");
    rewinddir(dir);
    int left = 0;
    while (readdir(dir)) left++;
    EXPECT(left == 4 + 2);
    closedir(dir);
    struct dirent **sorted;
    EXPECT(scandir("many", &sorted, sorts_last, alphasort) == 2);
    EXPECT(!strcmp(sorted[0]->d_name, "20") && !strcmp(sorted[1]->d_name, "21"));
    EXPECT(unlink("many/1") == 0 && unlink("many/20") == 0 && unlink("many/21") == 0);
    EXPECT(rmdir("many/dir") == 0 && rmdir("many") == 0);
}

static void times_go_on(void) {
    struct stat last, now;
    put("timed", "");
    EXPECT(stat("timed", &last) == 0 && llabs((long long)(time(NULL) - last.st_mtim.tv_sec)) < 60);
    int fd = open("timed", O_RDWR), wrong = 0;
    for (int n = 0; n < 100; n++) {
        write(fd, "x", 1);
        fstat(fd, &now);
        wrong += later(last.st_mtim, now.st_mtim) || later(last.st_ctim, now.st_ctim);
        wrong += now.st_size != n + 1;
        last = now;
    }
    EXPECT(wrong == 0);
    struct timespec times[2] = {{1000000000, 5}, {1100000000, 6}};
    EXPECT(futimens(fd, times) == 0 && fstat(fd, &now) == 0);
    EXPECT(now.st_atim.tv_sec == 1000000000 && now.st_atim.tv_nsec == 5);
    EXPECT(now.st_mtim.tv_sec == 1100000000 && now.st_mtim.tv_nsec == 6);
    EXPECT(!later(last.st_ctim, now.st_ctim));
    struct timespec some[2] = {{0, UTIME_OMIT}, {7, 0}};
    EXPECT(utimensat(AT_FDCWD, "timed", some, 0) == 0 && fstat(fd, &now) == 0);
    EXPECT(now.st_atim.tv_sec == 1000000000 && now.st_mtim.tv_sec == 7);
    // Does not use `UTIME_NOW`, because Debian's C library of 2022 handles it incorrectly.
    EXPECT(write(fd, "x", 1) == 1 && fstat(fd, &now) == 0);
    EXPECT(now.st_atim.tv_sec == 1000000000 && !later(last.st_mtim, now.st_mtim));
    struct timespec bad[2] = {{0, 0}, {0, 1000000000}};
    FAILS(utimensat(AT_FDCWD, "timed", bad, 0), EINVAL);
    FAILS(utimensat(AT_FDCWD, "none", times, 0), ENOENT);
    close(fd);
    EXPECT(unlink("timed") == 0);
}

bool exports_task_prepare(task_task_record_t *task, task_failure_t *err) { return true; }

bool exports_task_execute(task_task_record_t *task, task_outcome_t *ret, task_failure_t *err) {
    report = fopen("/outputs/report.txt", "w");
    setvbuf(report, NULL, _IONBF, 0);
    // Reserves space for the number of checks.
    fprintf(report, "      \n");
    char cwd[32];
    EXPECT(chdir("/outputs") == 0 && !strcmp(getcwd(cwd, sizeof cwd), "/outputs"));
    inputs_are_read();
    inputs_can_not_be_changed();
    bytes_are_written();
    entries_are_made_and_removed();
    entries_are_renamed();
    directories_are_listed();
    times_go_on();
    rewind(report);
    fprintf(report, "%6d", checked);
    fclose(report);
    *ret = (task_outcome_t){.success = true};
    return true;
}

bool exports_task_finalize(task_task_record_t *task, task_outcome_t *outcome, task_failure_t *err) {
    return true;
}
