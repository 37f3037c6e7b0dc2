/* A program with a `main` and without code for Task Host. It reads its task from standard input,
 * and writes it to `task.json`. If the task contains the word `later`, it asks for a retry until
 * the second attempt. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    static char task[1 << 16];
    size_t length = fread(task, 1, sizeof task - 1, stdin);
    const char *attempt = getenv("TASK_ATTEMPT");
    if (strstr(task, "later") && attempt && atoi(attempt) < 2) {
        fprintf(stderr, "%s is not ready at attempt %s\n", argv[0], attempt);
        return 75;
    }
    if (length == 0 || argc != 1) {
        fprintf(stderr, "there is no task\n");
        return 1;
    }
    FILE *out = fopen("/outputs/task.json", "w");
    if (!out || fwrite(task, 1, length, out) != length || fclose(out)) {
        perror("/outputs/task.json");
        return 2;
    }
    printf("attempt %s\n", attempt);
    return 0;
}
