// A V4L2 camera for one process: preload it, and the terminal that FAKE_CAMERA names answers as a capture driver.
//
// It is compiled against the kernel's own header, so the reader's structures and request numbers are checked by a
// reader of the real ones. One byte on the terminal's other side is one frame: the n-th JPEG or YUYV file of
// FAKE_FRAMES (a path with %d), 'x' one that USB has damaged. Its other side closed is the camera unplugged.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { BUFFERS = 4, LENGTH = 1 << 20, WIDTH = 64, HEIGHT = 48 };

static int memory = -1, streams, frame;
static unsigned char queued[BUFFERS];  // in the order of their numbers: enough for a reader that hands all back
static unsigned int pixelformat = V4L2_PIX_FMT_MJPEG;

static int ours(int descriptor) {
    static dev_t number;  // the path goes when the camera is unplugged
    struct stat it;
    const char *path = getenv("FAKE_CAMERA");
    if (!number && path && !stat(path, &it)) number = it.st_rdev;
    return number && !fstat(descriptor, &it) && S_ISCHR(it.st_mode) && it.st_rdev == number;
}

static int fail(int error) {
    errno = error;
    return -1;
}

static int dequeue(int descriptor, struct v4l2_buffer *buffer) {
    char sign, path[4096];
    struct pollfd look = {descriptor, POLLIN, 0};
    if (buffer->type != V4L2_BUF_TYPE_VIDEO_CAPTURE || buffer->memory != V4L2_MEMORY_MMAP || !streams)
        return fail(EINVAL);
    poll(&look, 1, 0);
    if (look.revents & (POLLHUP | POLLERR)) return fail(ENODEV);
    if (!(look.revents & POLLIN) || read(descriptor, &sign, 1) != 1) return fail(EAGAIN);
    for (buffer->index = 0; buffer->index < BUFFERS && !queued[buffer->index]; buffer->index++) {}
    if (buffer->index == BUFFERS) return fail(EAGAIN);
    queued[buffer->index] = 0;
    snprintf(path, sizeof path, getenv("FAKE_FRAMES"), frame++);
    int file = open(path, O_RDONLY);
    static char data[LENGTH];
    ssize_t size = read(file, data, sizeof data);
    close(file);
    if (size < 0 || pwrite(memory, data, size, (off_t)buffer->index * LENGTH) != size) return fail(EIO);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    buffer->bytesused = size;
    buffer->timestamp.tv_sec = now.tv_sec;
    buffer->timestamp.tv_usec = now.tv_nsec / 1000;
    buffer->flags = V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC | (sign == 'x' ? V4L2_BUF_FLAG_ERROR : 0);
    return 0;
}

static int answer(int descriptor, unsigned long request, void *argument) {
    switch (request) {
    case VIDIOC_QUERYCAP: {
        struct v4l2_capability *it = argument;
        strcpy((char *)it->driver, "fake");
        it->capabilities = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_META_CAPTURE | V4L2_CAP_STREAMING | V4L2_CAP_DEVICE_CAPS;
        it->device_caps = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
        return 0;
    }
    case VIDIOC_ENUM_FMT: {
        struct v4l2_fmtdesc *it = argument;
        const char *formats = getenv("FAKE_FORMATS");
        if (it->index >= strlen(formats) / 4) return fail(EINVAL);
        memcpy(&it->pixelformat, formats + 4 * it->index, 4);
        return 0;
    }
    case VIDIOC_S_FMT: pixelformat = ((struct v4l2_format *)argument)->fmt.pix.pixelformat;  // fall through
    case VIDIOC_G_FMT: {
        struct v4l2_pix_format *it = &((struct v4l2_format *)argument)->fmt.pix;
        if (((struct v4l2_format *)argument)->type != V4L2_BUF_TYPE_VIDEO_CAPTURE) return fail(EINVAL);
        it->width = WIDTH, it->height = HEIGHT, it->field = V4L2_FIELD_NONE, it->pixelformat = pixelformat;
        it->bytesperline = pixelformat == V4L2_PIX_FMT_YUYV ? 2 * WIDTH : 0;
        it->sizeimage = LENGTH;
        return 0;
    }
    case VIDIOC_S_PARM: return ((struct v4l2_streamparm *)argument)->parm.capture.timeperframe.numerator ? 0 : fail(EIO);
    case VIDIOC_REQBUFS: {
        struct v4l2_requestbuffers *it = argument;
        if (it->memory != V4L2_MEMORY_MMAP || it->type != V4L2_BUF_TYPE_VIDEO_CAPTURE) return fail(EINVAL);
        it->count = BUFFERS;
        memory = memfd_create("frames", 0);
        return ftruncate(memory, (off_t)BUFFERS * LENGTH);
    }
    case VIDIOC_QUERYBUF: {
        struct v4l2_buffer *it = argument;
        if (it->index >= BUFFERS) return fail(EINVAL);
        it->length = LENGTH;
        it->m.offset = it->index * LENGTH;
        return 0;
    }
    case VIDIOC_QBUF: {
        struct v4l2_buffer *it = argument;
        if (it->index >= BUFFERS || it->memory != V4L2_MEMORY_MMAP || queued[it->index]) return fail(EINVAL);
        queued[it->index] = 1;
        return 0;
    }
    case VIDIOC_DQBUF: return dequeue(descriptor, argument);
    case VIDIOC_STREAMON: return *(int *)argument == V4L2_BUF_TYPE_VIDEO_CAPTURE ? streams = 1, 0 : fail(EINVAL);
    }
    return fail(ENOTTY);
}

int ioctl(int descriptor, unsigned long request, ...) {
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (_IOC_TYPE(request) == 'V' && ours(descriptor)) return answer(descriptor, (unsigned int)request, argument);
    return ((int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl"))(descriptor, request, argument);
}

static void *map(const char *name, void *at, size_t size, int how, int flags, int descriptor, off_t offset) {
    void *(*real)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, name);
    return real(at, size, how, flags, descriptor >= 0 && memory >= 0 && ours(descriptor) ? memory : descriptor, offset);
}

void *mmap(void *at, size_t size, int how, int flags, int descriptor, off_t offset) {
    return map("mmap", at, size, how, flags, descriptor, offset);
}

void *mmap64(void *at, size_t size, int how, int flags, int descriptor, off_t offset) {
    return map("mmap64", at, size, how, flags, descriptor, offset);
}
