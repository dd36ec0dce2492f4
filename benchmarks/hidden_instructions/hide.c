/* Hides AVX-512, AMX and AVX-VNNI from every library of a process, so that each takes its way for AVX2. Preloaded by
 * benchmarks/hidden_instructions/__main__.py.
 *
 * Linux makes the instruction CPUID fault in this process, where the processor can. The handler of that fault executes
 * it, and clears what is hidden from the answer. Threads and forks inherit this; an executed program loses it, and gets
 * it anew by being preloaded too. XGETBV cannot be made to fault: it still tells that the system saves the large
 * registers, but libraries ask CPUID as well. */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define BIT(n) (1u << (n))

struct answer {
    uint32_t eax, ebx, ecx, edx;
};

/* Bits to clear. The names are Intel's. */
static const struct {
    uint32_t leaf, subleaf;
    struct answer bits;
} hidden[] = {
    {7, 0,
     {.ebx = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31), /* F DQ IFMA PF ER CD BW VL */
      .ecx = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14),        /* VBMI VBMI2 VNNI BITALG VPOPCNTDQ */
      .edx = BIT(2) | BIT(3) | BIT(8) | BIT(23)                    /* 4VNNIW 4FMAPS VP2INTERSECT FP16 */
             | BIT(22) | BIT(24) | BIT(25)}},                      /* AMX-BF16, -TILE, -INT8 */
    {7, 1,
     {.eax = BIT(4) | BIT(5) | BIT(21) | BIT(23),                  /* AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA */
      .edx = BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19)}},       /* VNNI-INT8, NE-CONVERT, AMX-COMPLEX, VNNI-INT16, AVX10 */
    {0xd, 0, {.eax = BIT(5) | BIT(6) | BIT(7) | BIT(17) | BIT(18)}}, /* state: masks, large registers, tiles */
};

static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);
static int (*real_mask)(int, const sigset_t *, sigset_t *);
/* What the program wants done at a fault of its own. */
static struct sigaction own = {.sa_handler = SIG_DFL};

const char *hidden_instructions(void) { return "AVX-512, AMX and AVX-VNNI hidden from CPUID"; }

static long set_cpuid(unsigned long allowed) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, allowed); }

static struct answer ask(uint32_t leaf, uint32_t subleaf) {
    struct answer is;
    set_cpuid(1);
    __cpuid_count(leaf, subleaf, is.eax, is.ebx, is.ecx, is.edx);
    set_cpuid(0);
    /* What describes tiles, their products, and AVX10. */
    if (leaf == 0x1d || leaf == 0x1e || leaf == 0x24) return (struct answer){0};
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++)
        if (hidden[i].leaf == leaf && hidden[i].subleaf == subleaf) {
            is.eax &= ~hidden[i].bits.eax, is.ebx &= ~hidden[i].bits.ebx;
            is.ecx &= ~hidden[i].bits.ecx, is.edx &= ~hidden[i].bits.edx;
        }
    return is;
}

static void handle(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    /* A fault that is no access to memory, so its instruction can be read. */
    if (info->si_code == SI_KERNEL && !memcmp((void *)registers[REG_RIP], "\x0f\xa2", 2)) {
        struct answer is = ask((uint32_t)registers[REG_RAX], (uint32_t)registers[REG_RCX]);
        registers[REG_RAX] = is.eax, registers[REG_RBX] = is.ebx;
        registers[REG_RCX] = is.ecx, registers[REG_RDX] = is.edx;
        registers[REG_RIP] += 2;
    } else if (own.sa_flags & SA_SIGINFO) {
        own.sa_sigaction(number, info, context);
    } else if (own.sa_handler != SIG_DFL && own.sa_handler != SIG_IGN) {
        own.sa_handler(number);
    } else {
        struct sigaction end = {.sa_handler = SIG_DFL};
        real_sigaction(SIGSEGV, &end, NULL);
        raise(SIGSEGV);
    }
}

/* Runs before those of other libraries: it is linked with -z initfirst. */
__attribute__((constructor)) static void start(void) {
    real_sigaction = dlsym(RTLD_NEXT, "sigaction"), real_mask = dlsym(RTLD_NEXT, "pthread_sigmask");
    /* SA_NODEFER: a fault of the program's own handler is answered too. */
    struct sigaction answered = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    if (real_sigaction(SIGSEGV, &answered, NULL) || set_cpuid(0)) {
        perror("error: CPUID cannot be made to fault on this processor");
        _exit(71);
    }
}

/* The program may neither take the handler away nor block its signal: a fault then ends the process. */

int sigaction(int number, const struct sigaction *restrict new, struct sigaction *restrict old) {
    if (number != SIGSEGV) return real_sigaction(number, new, old);
    struct sigaction before = own;
    if (new) own = *new;
    if (old) *old = before;
    return 0;
}

sighandler_t signal(int number, sighandler_t handler) {
    struct sigaction new = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
    return sigaction(number, &new, &old) ? SIG_ERR : old.sa_handler;
}

int pthread_sigmask(int how, const sigset_t *restrict set, sigset_t *restrict old) {
    if (!set || how == SIG_UNBLOCK) return real_mask(how, set, old);
    sigset_t others = *set;
    sigdelset(&others, SIGSEGV);
    return real_mask(how, &others, old);
}

int sigprocmask(int how, const sigset_t *restrict set, sigset_t *restrict old) {
    int error = pthread_sigmask(how, set, old);
    if (error) errno = error;
    return error ? -1 : 0;
}
