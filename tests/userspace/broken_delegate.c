// SPDX-License-Identifier: MIT
// A TFLite external delegate that is broken in the way that its option "how" asks for.
// TfLiteDelegate (tensorflow/lite/core/c/common.h): data_, then Prepare(context, delegate) -> status.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct delegate {
    void *data;
    int (*prepare)(void *context, struct delegate *self);
    void *others[14];
};

static int take_nothing(void *context, struct delegate *self)
{
    (void)context;
    (void)self;
    return 0;
}

static int crash(void *context, struct delegate *self)
{
    (void)context;
    (void)self;
    abort();
}

struct delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count,
                                               void (*report)(const char *))
{
    struct delegate *made = calloc(1, sizeof(*made));
    const char *how = "";

    (void)report;
    for (size_t i = 0; i < count; i++)
        if (!strcmp(keys[i], "how"))
            how = values[i];
    if (!strcmp(how, "refuse")) {
        fprintf(stderr, "I will not\n");
        return NULL;
    }
    if (!strcmp(how, "segfault"))
        *(volatile int *)NULL = 1;
    if (!strcmp(how, "hang"))
        for (;;)
            pause();
    made->prepare = strcmp(how, "abort") ? take_nothing : crash;
    return made;
}

void tflite_plugin_destroy_delegate(struct delegate *made)
{
    free(made);
}
