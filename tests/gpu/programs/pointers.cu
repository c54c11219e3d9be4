// SPDX-License-Identifier: GPL-2.0-or-later
//
// The hard case: a table of pointers lies in device memory, and a kernel follows it. Nothing but
// the kernel knows which arrays that touches.
//
//     pointers OUT.bin
//
// Knows nothing of GreenBoost.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <cuda_runtime.h>

#define CHECK(call)                                                                    \
	do {                                                                           \
		cudaError_t error = (call);                                            \
		if (error != cudaSuccess) {                                            \
			fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(error)); \
			exit(1);                                                       \
		}                                                                      \
	} while (0)

constexpr int COUNT = 96;
constexpr size_t WORDS = 2u << 20;

__global__ void follow(unsigned *const *table, int first, int count)
{
	for (int n = first; n < first + count; n++) {
		unsigned *array = table[n], *next = table[(n + 1) % COUNT];

		/* A word of every array is the same thread's, so no two race for it. */
		for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < WORDS;
		     i += gridDim.x * blockDim.x)
			array[i] = array[i] * 1664525u + next[i] % 16u;
	}
}

int main(int argc, char **argv)
{
	std::vector<unsigned *> table(COUNT);
	std::vector<unsigned> words(WORDS);
	unsigned **device;
	FILE *out;

	if (argc != 2 || !(out = fopen(argv[1], "wb")))
		return 2;
	for (int n = 0; n < COUNT; n++) {
		CHECK(cudaMalloc(&table[n], WORDS * sizeof(unsigned)));
		for (size_t i = 0; i < WORDS; i++)
			words[i] = unsigned(i * 2654435761u) ^ n;
		CHECK(cudaMemcpy(table[n], words.data(), WORDS * sizeof(unsigned),
				 cudaMemcpyHostToDevice));
	}
	CHECK(cudaMalloc(&device, COUNT * sizeof(*device)));
	CHECK(cudaMemcpy(device, table.data(), COUNT * sizeof(*device), cudaMemcpyHostToDevice));
	for (int round = 0; round < 3; round++)
		for (int first = 0; first < COUNT; first += 8)
			follow<<<132, 256>>>(device, first, 8);
	CHECK(cudaDeviceSynchronize());
	for (int n = 0; n < COUNT; n++) {
		CHECK(cudaMemcpy(words.data(), table[n], WORDS * sizeof(unsigned),
				 cudaMemcpyDeviceToHost));
		if (fwrite(words.data(), sizeof(unsigned), WORDS, out) != WORDS)
			return 2;
	}
	return fclose(out) ? 2 : 0;
}
