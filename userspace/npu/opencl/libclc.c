// SPDX-License-Identifier: MIT
// Preloaded with rusticl in a folder of its own (rusticl.py): Mesa opens libclc's SPIR-V by a path that is
// compiled in (src/compiler/clc, DYNAMIC_LIBCLC_PATH: /usr/lib/clc/ in Debian) and asks no variable. What is
// opened below that folder is opened in $NPU_BSP_LIBCLC instead.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

static const char compiled_in[] = "/usr/lib/clc/";

static int open_moved(const char *path, int flags, mode_t mode) {
  char moved[4096];
  const char *folder = getenv("NPU_BSP_LIBCLC");
  if (folder && !strncmp(path, compiled_in, sizeof(compiled_in) - 1)) {
    int size = snprintf(moved, sizeof(moved), "%s/%s", folder, path + sizeof(compiled_in) - 1);
    if (size > 0 && size < (int)sizeof(moved)) path = moved;
  }
  return openat(AT_FDCWD, path, flags, mode);
}

// The mode is given only with flags that make a file.
#define OPEN(name)                                                    \
  __attribute__((visibility("default"))) int name(const char *path, int flags, ...) { \
    mode_t mode = 0;                                                  \
    if (flags & (O_CREAT | __O_TMPFILE)) {                            \
      va_list rest;                                                   \
      va_start(rest, flags);                                          \
      mode = va_arg(rest, mode_t);                                    \
      va_end(rest);                                                   \
    }                                                                 \
    return open_moved(path, flags, mode);                             \
  }

OPEN(open)
OPEN(open64)
