/* Blurs grey pictures (binary PGM): each pixel becomes the mean of the pixels around it. */

#include <errno.h>

#include "task_host.h"

TH_ONLY_EXECUTE

bool exports_task_execute(task_task_record_t *task, task_outcome_t *outcome,
                          task_failure_t *failure) {
    double radius = 1;
    if (!th_payload_number(task, "radius", &radius))
        return th_reject(failure, "payload.radius: expected a number");
    for (size_t i = 0; i < task->info.inputs.len; i++) {
        char *key = th_key(task, i);
        size_t length;
        unsigned char *bytes = (unsigned char *)th_read(key, &length);
        if (!bytes) return th_retry(failure, "input %s: %s", key, strerror(errno));
        int width, height, begin = 0;
        int found = sscanf((char *)bytes, "P5 %d %d 255%n", &width, &height, &begin);
        const unsigned char *pixels = bytes + begin + 1;
        if (found != 2 || begin == 0 || pixels + (size_t)width * height > bytes + length)
            return th_reject(failure, "input %s is not a grey picture", key);

        FILE *out = th_create(th_format("1_blurred/%s", key));
        if (!out) return th_retry(failure, "%s: %s", key, strerror(errno));
        fprintf(out, "P5\n%d %d\n255\n", width, height);
        for (int y = 0; y < height; y++)
            for (int x = 0; x < width; x++) {
                unsigned sum = 0, count = 0;
                for (int v = y - radius; v <= y + radius; v++)
                    for (int u = x - radius; u <= x + radius; u++)
                        if (u >= 0 && v >= 0 && u < width && v < height)
                            sum += pixels[v * width + u], count++;
                fputc(sum / count, out);
            }
        if (!th_close(out)) return th_retry(failure, "%s: %s", key, strerror(errno));
    }
    return th_done(outcome);
}
