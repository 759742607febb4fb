// SPDX-License-Identifier: MIT
// A TFLite external delegate that is broken in the way that its option "how" asks for.
// The layouts are those of tensorflow/lite/core/c/common.h, 2.14, as far as they are used here; runtimes keep
// them, since delegates are compiled apart from them.
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

// What is wrong with it where nobody gives it options.
#ifndef HOW
#define HOW ""
#endif

struct ints { int size; int data[]; };

struct tensor {
    int type;
    void *data;
    struct ints *dims;
    struct { float scale; int zero_point; } params;
    int allocation;
    size_t bytes;
    const void *arena;
    char *name;
    void *delegate;
    int buffer_handle;
    bool stale, variable;
    struct { int type; void *params; } quantization;
    void *sparsity;
    const struct ints *signature;
};

struct node {
    struct ints *inputs, *outputs, *intermediates, *temporaries;
    void *user, *builtin;
};

struct context;

struct registration {
    void *(*init)(struct context *, const char *, size_t);
    void (*free)(struct context *, void *);
    int (*prepare)(struct context *, struct node *);
    int (*invoke)(struct context *, struct node *);
    const char *(*profiling)(const struct context *, const struct node *);
    int builtin_code;
    const char *custom_name;
    int version;
    void *external, *async;
    uint64_t inplace;
};

struct delegate;

struct context {
    size_t tensors_size;
    int (*plan)(struct context *, struct ints **);
    struct tensor *tensors;
    void *impl;
    int (*resize)(struct context *, struct tensor *, struct ints *);
    void (*report)(struct context *, const char *, ...);
    int (*add)(struct context *, int, int *);
    int (*get)(struct context *, int, struct node **, struct registration **);
    int (*replace)(struct context *, struct registration, const struct ints *, struct delegate *);
};

struct delegate {
    void *data;
    int (*prepare)(struct context *context, struct delegate *self);
    void *others[14];
};

// Takes the convolutions and "computes" what a GPU that had hung gives: what "value" says, all over.
static int value;

static int fill(struct context *context, struct node *node)
{
    for (int i = 0; i < node->outputs->size; i++) {
        struct tensor *tensor = &context->tensors[node->outputs->data[i]];
        unsigned char *bytes = tensor->data;

        for (size_t at = 0; at < tensor->bytes; at++)
            bytes[at] = value < 0 ? (unsigned char)(at * 37) : (unsigned char)value;
    }
    return 0;
}

// Takes RESHAPE alone, and does it; in every "value"th run it is a little off: as of a race.
static int flicker(struct context *context, struct node *node)
{
    struct tensor *sink = &context->tensors[node->outputs->data[0]];
    unsigned char *bytes = sink->data;
    static int runs;

    memcpy(bytes, context->tensors[node->inputs->data[0]].data, sink->bytes);
    if (++runs % value == 0)
        for (size_t at = 0; at < sink->bytes; at += 2)
            bytes[at] ^= 4;
    return 0;
}

// Takes RESHAPE alone, and does it; then it writes where it must not: into its input, or into a constant.
static int scribble(struct context *context, struct node *node)
{
    struct tensor *sink = &context->tensors[node->outputs->data[0]];
    struct tensor *other = &context->tensors[node->inputs->data[value]];

    memcpy(sink->data, context->tensors[node->inputs->data[0]].data, sink->bytes);
    memset(other->data, 0x55, other->bytes);
    return 0;
}

// Takes RESHAPE alone, and hands out what it should have "value" runs ago, or in its first run.
static int late(struct context *context, struct node *node)
{
    struct tensor *sink = &context->tensors[node->outputs->data[0]];
    static unsigned char *kept[1000];
    static int runs;

    kept[runs] = malloc(sink->bytes);
    memcpy(kept[runs], context->tensors[node->inputs->data[0]].data, sink->bytes);
    memcpy(sink->data, kept[!value || runs < value ? 0 : runs - value], sink->bytes);
    runs++;
    return 0;
}

// Takes RESHAPE alone, and does it; then it writes "value" bytes more than its output has: a size rounded up.
static int overrun(struct context *context, struct node *node)
{
    struct tensor *sink = &context->tensors[node->outputs->data[0]];

    memcpy(sink->data, context->tensors[node->inputs->data[0]].data, sink->bytes);
    memset((char *)sink->data + sink->bytes, 0, value);
    return 0;
}

static int take(struct context *context, struct delegate *self, int first, int last,
                int (*invoke)(struct context *, struct node *))
{
    struct registration ours = { .invoke = invoke, .builtin_code = 51, .custom_name = "wrong", .version = 1 };
    struct ints *plan, *taken;
    int status;

    if (context->plan(context, &plan))
        return 1;
    taken = calloc(1, sizeof(*taken) + sizeof(int) * (size_t)plan->size);
    for (int i = 0; i < plan->size; i++) {
        struct registration *theirs;
        struct node *node;

        if (context->get(context, plan->data[i], &node, &theirs))
            return 1;
        if (theirs->builtin_code >= first && theirs->builtin_code <= last)
            taken->data[taken->size++] = plan->data[i];
    }
    status = context->replace(context, ours, taken, self);
    free(taken);
    return status;
}

static int take_convolutions(struct context *context, struct delegate *self)
{
    return take(context, self, 3, 4, fill);
}

static int take_reshape(struct context *context, struct delegate *self)
{
    return take(context, self, 22, 22, flicker);
}

static int take_and_scribble(struct context *context, struct delegate *self)
{
    return take(context, self, 22, 22, scribble);
}

static int take_and_be_late(struct context *context, struct delegate *self)
{
    return take(context, self, 22, 22, late);
}

static int take_and_overrun(struct context *context, struct delegate *self)
{
    return take(context, self, 22, 22, overrun);
}

static int fail(struct context *context, struct delegate *self)
{
    (void)self;
    context->report(context, "no memory for the graph");
    fprintf(stderr, "vendor: cannot allocate 12 MiB\n");
    return 1;
}

static int take_nothing(struct context *context, struct delegate *self)
{
    (void)context;
    (void)self;
    return 0;
}

static int crash(struct context *context, struct delegate *self)
{
    (void)context;
    (void)self;
    abort();
}

struct delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count,
                                               void (*report)(const char *))
{
    struct delegate *made = calloc(1, sizeof(*made));
    const char *how = HOW;

    (void)report;
    for (size_t i = 0; i < count; i++)
        if (!strcmp(keys[i], "how"))
            how = values[i];
    for (size_t i = 0; i < count; i++)
        if (!strcmp(keys[i], "value"))
            value = atoi(values[i]);
    if (!strcmp(how, "refuse")) {
        fprintf(stderr, "I will not\n");
        return NULL;
    }
    if (!strcmp(how, "segfault"))
        *(volatile int *)NULL = 1;
    if (!strcmp(how, "deaf"))
        signal(SIGALRM, SIG_IGN);
    if (!strcmp(how, "hang") || !strcmp(how, "deaf"))
        for (;;)
            pause();
    // From now on the process writes no file of more than some bytes, as on a disk that is full.
    if (!strcmp(how, "full"))
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){ 32, 32 });
    // As the kernel does with who takes too much memory.
    if (!strcmp(how, "killed"))
        raise(SIGKILL);
    made->prepare = take_nothing;
    if (!strcmp(how, "abort"))
        made->prepare = crash;
    if (!strcmp(how, "wrong"))
        made->prepare = take_convolutions;
    if (!strcmp(how, "flicker"))
        made->prepare = take_reshape;
    if (!strcmp(how, "scribble"))
        made->prepare = take_and_scribble;
    if (!strcmp(how, "late"))
        made->prepare = take_and_be_late;
    if (!strcmp(how, "overrun"))
        made->prepare = take_and_overrun;
    if (!strcmp(how, "fail"))
        made->prepare = fail;
    return made;
}

void tflite_plugin_destroy_delegate(struct delegate *made)
{
    free(made);
}
