/* Summarises CSV files: count, smallest, largest and mean value of each numeric column, in
 * `summary.json`.
 *
 * Replace this example with your own task. README.md says how to build, try and queue it. */

#include <errno.h>
#include <math.h>

#include "task_host.h"

#define MOST_COLUMNS 256

struct column {
    const char *name;
    bool is_numeric;
    size_t count;
    double min, max, sum;
};

TH_ONLY_EXECUTE

static size_t read_row(char **at, char *cells[MOST_COLUMNS]);
static void add(struct column *column, const char *cell);
static void write_string(FILE *out, const char *text);
static void write_number(FILE *out, const char *before, double number);

bool exports_task_execute(task_task_record_t *task, task_outcome_t *outcome,
                          task_failure_t *failure) {
    double min_rows = 1;
    if (!th_payload_number(task, "min_rows", &min_rows))
        return th_reject(failure, "payload.min_rows: expected a number");
    if (task->info.inputs.len == 0) return th_reject(failure, "the task has no inputs");

    FILE *out = th_create("summary.json");
    if (!out) return th_retry(failure, "summary.json: %s", strerror(errno));
    for (size_t i = 0; i < task->info.inputs.len; i++) {
        char *key = th_key(task, i);
        size_t length;
        char *at = th_read(key, &length);
        if (!at) return th_retry(failure, "input %s: %s", key, strerror(errno));

        char *cells[MOST_COLUMNS];
        struct column columns[MOST_COLUMNS] = {0};
        size_t width = read_row(&at, cells), rows = 0;
        for (size_t c = 0; c < width; c++)
            columns[c] = (struct column){.name = cells[c], .is_numeric = true};
        for (size_t found; (found = read_row(&at, cells)) > 0; rows++)
            for (size_t c = 0; c < width && c < found; c++) add(&columns[c], cells[c]);
        if (rows < min_rows)
            return th_reject(failure, "input %s has %zu rows; min_rows is %g", key, rows, min_rows);

        fputs(i == 0 ? "{" : ", ", out);
        write_string(out, key);
        const char *separator = ": {";
        for (size_t c = 0; c < width; c++) {
            const struct column *column = &columns[c];
            if (!column->is_numeric || column->count == 0) continue;
            fputs(separator, out);
            separator = ", ";
            write_string(out, column->name);
            fprintf(out, ": {\"count\": %zu", column->count);
            write_number(out, ", \"min\": ", column->min);
            write_number(out, ", \"max\": ", column->max);
            write_number(out, ", \"mean\": ", column->sum / (double)column->count);
            fputc('}', out);
        }
        fputs(*separator == ':' ? ": {}" : "}", out);
        fprintf(stderr, "%s: %zu rows\n", key, rows);
    }
    fputs("}\n", out);
    if (!th_close(out)) return th_retry(failure, "summary.json: %s", strerror(errno));
    return th_done(outcome);
}

/* Finds the cells of the next row that is not empty, and returns their number. The cells point into
 * the text, which is changed. */
static size_t read_row(char **at, char *cells[MOST_COLUMNS]) {
    char *from = *at + strspn(*at, "\r\n");
    size_t count = 0;
    bool is_over = *from == 0;
    while (!is_over && count < MOST_COLUMNS) {
        bool is_quoted = *from == '"';
        char *to = is_quoted ? ++from : from;
        cells[count++] = to;
        while (*from && (is_quoted || !strchr(",\r\n", *from))) {
            if (is_quoted && *from == '"') {
                if (*++from != '"') {
                    is_quoted = false;
                    continue;
                }
            }
            *to++ = *from++;
        }
        is_over = *from != ',';
        if (*from) from++;
        *to = 0;
    }
    *at = from;
    return count;
}

/* Adds a cell to a column. A cell that is neither empty nor a number makes it a column of text. */
static void add(struct column *column, const char *cell) {
    if (!column->is_numeric || *cell == 0) return;
    char *end;
    double number = strtod(cell, &end);
    if (*end || !isfinite(number)) {
        column->is_numeric = false;
        return;
    }
    if (column->count == 0 || number < column->min) column->min = number;
    if (column->count == 0 || number > column->max) column->max = number;
    column->sum += number;
    column->count++;
}

static void write_string(FILE *out, const char *text) {
    fputc('"', out);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') fputc('\\', out);
        if ((unsigned char)*text < ' ')
            fprintf(out, "\\u%04x", *text);
        else
            fputc(*text, out);
    }
    fputc('"', out);
}

/* Writes the fewest digits, from 15, that represent the number exactly. */
static void write_number(FILE *out, const char *before, double number) {
    char text[32];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, number);
        if (strtod(text, NULL) == number) break;
    }
    fprintf(out, "%s%s", before, text);
}
