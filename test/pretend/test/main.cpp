/* test_pretend - the CUDA-on-CPU layer tested: what CUDA defines is right, planted bugs are found.
 */
#include "check.h"

int n_failures, n_checks;

int main(int argc, char **argv) {
    setenv("TDGEN_PRETEND_GPUS", "Pretend H100:9.0:132:0.5*2,Pretend V100:7.0:80:0.25", 1);
    setenv("TDGEN_PRETEND_JITTER", "0", 1);
    if (argc == 3 && !strcmp(argv[1], "planted"))
        return run_planted(argv[2]);
    test_numbers();
    test_warp_collectives();
    test_tensor_cores();
    test_planted_barriers();
    test_planted_memory();
    test_products();
    test_streams();
    test_under_sanitizers(argv[0]);
    test_runtime_errors(); /* last: it leaves a stream that hangs */
    printf("test_pretend: %d checks, %d failed\n", n_checks, n_failures);
    return n_failures != 0;
}
