/* The files and failures of a task, on top of the bindings that wit-bindgen generated from Task
 * Host's interface. The caller owns the strings that these functions return. It need not free them,
 * because all memory of a task goes away with its instance. */
#ifndef TASK_HOST_H
#define TASK_HOST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../bindings/task.h"

/* Defines the two calls that most tasks don't need. */
#define TH_ONLY_EXECUTE                                                              \
    bool exports_task_prepare(task_task_record_t *task, task_failure_t *failure) {   \
        (void)task, (void)failure;                                                   \
        return true;                                                                 \
    }                                                                                \
    bool exports_task_finalize(task_task_record_t *task, task_outcome_t *outcome,    \
                               task_failure_t *failure) {                            \
        (void)task, (void)outcome, (void)failure;                                    \
        return true;                                                                 \
    }

static inline char *th_vformat(const char *format, va_list arguments) {
    va_list again;
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, again);
    va_end(again);
    char *text = malloc(length + 1);
    vsnprintf(text, length + 1, format, arguments);
    return text;
}

/* A new string, formatted as by printf. */
__attribute__((format(printf, 1, 2))) static inline char *th_format(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char *text = th_vformat(format, arguments);
    va_end(arguments);
    return text;
}

/* Ends a call with a failure that a retry can't fix: `return th_reject(failure, "no rows in %s",
 * key);`. The host rejects the task, and the report on the error queue has the reason. */
__attribute__((format(printf, 2, 3))) static inline bool th_reject(task_failure_t *failure,
                                                                   const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    failure->tag = TASK_HOST_GUEST_TYPES_FAILURE_REJECT;
    task_string_set(&failure->val.reject, th_vformat(format, arguments));
    va_end(arguments);
    return false;
}

/* Ends a call with a failure that may be temporary. The host retries the task later. */
__attribute__((format(printf, 2, 3))) static inline bool th_retry(task_failure_t *failure,
                                                                  const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    failure->tag = TASK_HOST_GUEST_TYPES_FAILURE_RETRY;
    task_string_set(&failure->val.retry, th_vformat(format, arguments));
    va_end(arguments);
    return false;
}

/* Ends `execute` with success: `return th_done(outcome);`. All files in /outputs are published. */
static inline bool th_done(task_outcome_t *outcome) {
    *outcome = (task_outcome_t){.success = true};
    return true;
}

/* The key of input I, from 0 to `task->info.inputs.len`. */
static inline char *th_key(const task_task_record_t *task, size_t i) {
    const task_string_t *key = &task->info.inputs.ptr[i];
    return th_format("%.*s", (int)key->len, (const char *)key->ptr);
}

/* Whether there is an input with this key. The key may begin with a slash, as in a plan. */
static inline bool th_has(const task_task_record_t *task, const char *key) {
    if (*key == '/') key++;
    for (size_t i = 0; i < task->info.inputs.len; i++) {
        const task_string_t *input = &task->info.inputs.ptr[i];
        if (input->len == strlen(key) && !memcmp(input->ptr, key, input->len)) return true;
    }
    return false;
}

/* Opens the input with this key. Like fopen, returns NULL if that fails. */
static inline FILE *th_open(const char *key) {
    return fopen(th_format("/inputs/%s", *key == '/' ? key + 1 : key), "rb");
}

/* Reads the whole input, and adds a 0 at its end. Returns NULL if the input can't be read. */
static inline char *th_read(const char *key, size_t *length) {
    FILE *file = th_open(key);
    struct stat status;
    if (!file || fstat(fileno(file), &status)) return NULL;
    char *bytes = malloc((size_t)status.st_size + 1);
    if (!bytes) return NULL;
    *length = fread(bytes, 1, (size_t)status.st_size, file);
    bytes[*length] = 0;
    bool is_read = !ferror(file);
    fclose(file);
    return is_read ? bytes : NULL;
}

/* Creates the output with this key, and its directories. Returns NULL if that fails. */
static inline FILE *th_create(const char *key) {
    char *path = th_format("/outputs/%s", key);
    for (char *slash = strchr(path + strlen("/outputs/"), '/'); slash;
         slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0777);
        *slash = '/';
    }
    return fopen(path, "wb");
}

/* Closes an output. Returns false if not all bytes were written. */
static inline bool th_close(FILE *file) {
    bool is_written = !ferror(file);
    return fclose(file) == 0 && is_written;
}

/* Finds `"NAME": NUMBER` in the payload. Does not change `*number` if the payload has no such name.
 * Returns false if the value is not a number. For anything else, use a JSON library. */
static inline bool th_payload_number(const task_task_record_t *task, const char *name,
                                     double *number) {
    if (!task->payload.is_some) return true;
    const task_string_t *payload = &task->payload.val;
    char *text = th_format("%.*s", (int)payload->len, (const char *)payload->ptr);
    const char *quoted = th_format("\"%s\"", name);
    const char *found = strstr(text, quoted);
    if (!found) return true;
    found += strlen(quoted);
    found += strspn(found, " \t\r\n");
    if (*found != ':') return false;
    found += 1 + strspn(found + 1, " \t\r\n");
    char *end;
    *number = strtod(found, &end);
    return end > found;
}

/* The bindings of the world `task-with-plan` have `exports_task_plan`. */
#ifdef TASK_HOST_GUEST_PLANNING_NEED_KEY

/* Begins a plan without inputs. */
static inline void th_begin_needs(task_needs_t *needs) { *needs = (task_needs_t){0}; }

static inline void th_add_need(task_needs_t *needs, uint8_t tag, const char *format,
                               va_list arguments) {
    size_t count = needs->inputs.len;
    /* The capacity doubles when the count is 0, 1, 2, 4, 8 and so on. */
    if ((count & (count - 1)) == 0) {
        size_t places = count ? 2 * count : 1;
        needs->inputs.ptr = realloc(needs->inputs.ptr, places * sizeof *needs->inputs.ptr);
        if (!needs->inputs.ptr) abort();
    }
    task_host_guest_planning_need_t *need = &needs->inputs.ptr[needs->inputs.len++];
    need->tag = tag;
    /* The text has the same address for each tag. */
    task_string_set(&need->val.key, th_vformat(format, arguments));
}

/* Asks for an object that must exist: `th_need(needs, "tiles/%d.raw", x);`. */
__attribute__((format(printf, 2, 3))) static inline void th_need(task_needs_t *needs,
                                                                 const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    th_add_need(needs, TASK_HOST_GUEST_PLANNING_NEED_KEY, format, arguments);
    va_end(arguments);
}

/* Asks for an object that may be missing. */
__attribute__((format(printf, 2, 3))) static inline void th_need_optional(task_needs_t *needs,
                                                                          const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    th_add_need(needs, TASK_HOST_GUEST_PLANNING_NEED_OPTIONAL_KEY, format, arguments);
    va_end(arguments);
}

/* Asks for all objects below a prefix. */
__attribute__((format(printf, 2, 3))) static inline void th_need_prefix(task_needs_t *needs,
                                                                        const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    th_add_need(needs, TASK_HOST_GUEST_PLANNING_NEED_PREFIX, format, arguments);
    va_end(arguments);
}

#endif

#endif
