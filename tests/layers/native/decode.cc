// The decoding step against the plain way through a decoder.
#include "check.h"

namespace {

// y[rows] of one row: w[rows, size] x, added to what y holds
void add_product(const double *w, int64_t rows, int64_t size, const double *x, double *y) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < size; j++) y[i] += w[i * size + j] * x[j];
}

// A small decoder's arrays in the kernel's order, and the plain way through it, one sequence after another.
struct Decoder {
  DecoderCase c;
  double eps = 1e-5;
  std::vector<Array> arrays;  // ids, position, sizes, eps, cos, sin, embedding, norm, head, then those of the layers
  std::vector<Doubles> values, keys;  // of layer and sequence: what has been written so far

  explicit Decoder(const DecoderCase &size) : c(size), values(c.layers * c.batch), keys(c.layers * c.batch) {
    const int64_t d = c.head_size, width = c.kv_heads * c.group * d, qkv = width + 2 * c.kv_heads * d;
    const auto add = [&](Shape shape, double scale = .5, double mean = 0) {
      arrays.push_back(random_array(Type::f32, shape, scale, mean));
    };
    arrays.push_back(Array(Type::i32, {c.batch}));
    arrays.push_back(Array(Type::i32, {1}));
    const double heads = static_cast<double>(c.kv_heads * c.group);
    arrays.push_back(filled(Type::i32, {4}, {double(c.layers), heads, double(c.kv_heads), double(c.blocks)}));
    arrays.push_back(filled(Type::f32, {1}, {eps}));
    eps = arrays[3].get(0);
    add({c.slots, d}), add({c.slots, d}), add({c.vocab, c.hidden}), add({c.hidden}, .5, 1), add({c.vocab, c.hidden});
    for (int64_t i = 0; i < c.layers; i++) {
      add({c.hidden}, .5, 1), add({qkv, c.hidden}), add({c.hidden, width}), add({c.hidden}, .5, 1);
      add({2 * c.ffn, c.hidden}), add({c.hidden, c.ffn});
      for (int cache = 0; cache < 2; cache++)
        arrays.push_back(filled(Type::f32, {c.batch * c.kv_heads * c.slots, d},
                                Doubles(c.batch * c.kv_heads * c.slots * d, NOT_A_NUMBER)));
      if (c.normed) add({d}, .5, 1), add({d}, .5, 1);
    }
  }

  int per_layer() const { return c.normed ? 10 : 8; }
  Doubles at(int i) const { return arrays[i].values(); }

  void turn(const double *head, const Doubles *norm, int64_t position, double *turned) const {
    const int64_t d = c.head_size;
    Doubles normed(head, head + d);
    if (norm) norm_row(head, norm->data(), eps, d, normed.data());
    for (int64_t j = 0; j < d; j++) {
      const double other = j < d / 2 ? -normed[j + d / 2] : normed[j - d / 2];
      turned[j] = normed[j] * arrays[4].get(position * d + j) + other * arrays[5].get(position * d + j);
    }
  }

  Doubles attend(int64_t layer, int64_t sequence, const Doubles &qkv, int64_t position) {
    const int64_t d = c.head_size, first = 9 + layer * per_layer();
    const Doubles q_norm = c.normed ? at(first + 8) : Doubles(), k_norm = c.normed ? at(first + 9) : Doubles();
    Doubles &k = keys[layer * c.batch + sequence], &v = values[layer * c.batch + sequence], out;
    k.resize((position + 1) * c.kv_heads * d), v.resize(k.size());
    for (int64_t g = 0; g < c.kv_heads; g++) {
      const double *heads = &qkv[g * (c.group + 2) * d];
      turn(heads + c.group * d, c.normed ? &k_norm : nullptr, position, &k[(position * c.kv_heads + g) * d]);
      for (int64_t j = 0; j < d; j++) v[(position * c.kv_heads + g) * d + j] = heads[(c.group + 1) * d + j];
      for (int64_t h = 0; h < c.group; h++) {
        Doubles q(d), shares(position + 1), sum(d);
        turn(heads + h * d, c.normed ? &q_norm : nullptr, position, q.data());
        double total = 0;
        for (int64_t t = 0; t <= position; t++) {
          for (int64_t j = 0; j < d; j++) shares[t] += q[j] * k[(t * c.kv_heads + g) * d + j] / std::sqrt(double(d));
          total += shares[t] = std::exp(shares[t]);
        }
        for (int64_t t = 0; t <= position; t++)
          for (int64_t j = 0; j < d; j++) sum[j] += shares[t] / total * v[(t * c.kv_heads + g) * d + j];
        out.insert(out.end(), sum.begin(), sum.end());
      }
    }
    return out;
  }

  Doubles logits(int64_t sequence, int64_t id, int64_t position) {
    Doubles x(c.hidden), normed(c.hidden);
    for (int64_t j = 0; j < c.hidden; j++) x[j] = arrays[6].get(id * c.hidden + j);
    const int64_t width = c.kv_heads * c.group * c.head_size, block = c.ffn / c.blocks;
    for (int64_t i = 0; i < c.layers; i++) {
      const int first = static_cast<int>(9 + i * per_layer());
      Doubles qkv(width + 2 * c.kv_heads * c.head_size), gate_up(2 * c.ffn), active(c.ffn);
      norm_row(x.data(), at(first).data(), eps, c.hidden, normed.data());
      add_product(at(first + 1).data(), qkv.size(), c.hidden, normed.data(), qkv.data());
      add_product(at(first + 2).data(), c.hidden, width, attend(i, sequence, qkv, position).data(), x.data());
      norm_row(x.data(), at(first + 3).data(), eps, c.hidden, normed.data());
      add_product(at(first + 4).data(), 2 * c.ffn, c.hidden, normed.data(), gate_up.data());
      for (int64_t j = 0; j < c.ffn; j++) {
        const double *gate = &gate_up[j / block * 2 * block + j % block];
        active[j] = gate[0] / (1 + std::exp(-gate[0])) * gate[block];
      }
      add_product(at(first + 5).data(), c.hidden, c.ffn, active.data(), x.data());
    }
    norm_row(x.data(), at(7).data(), eps, c.hidden, normed.data());
    Doubles result(c.vocab);
    add_product(at(8).data(), c.vocab, c.hidden, normed.data(), result.data());
    return result;
  }

  int step(Array &found) {
    std::vector<Array *> all;
    for (Array &array : arrays) all.push_back(&array);
    all.push_back(&found);
    return run(decode_step, all);
  }
};

}  // namespace

// As many tokens as there are slots; one more, and an id that is no word, are refused.
void test_decode(const DecoderCase &size) {
  const std::string name = "decode_step" + sizes({size.batch, size.layers, size.kv_heads, size.group, size.head_size});
  const std::mt19937 same = generator;
  with_threads(name, [&] {
    generator = same;
    Decoder decoder(size);
    Array found(Type::f32, {size.batch, size.vocab});
    for (int64_t position = 0; position < size.slots; position++) {
      Doubles wanted;
      decoder.arrays[1].set(0, double(position));
      for (int64_t b = 0; b < size.batch; b++) {
        const int64_t id = (7 * position + 3 * b) % size.vocab;
        decoder.arrays[0].set(b, double(id));
        const Doubles logits = decoder.logits(b, id, position);
        wanted.insert(wanted.end(), logits.begin(), logits.end());
      }
      expect(decoder.step(found) == 0, "failed");
      expect_near("logits", found, wanted, 2e-5);
    }
    decoder.arrays[1].set(0, double(size.slots));
    expect(decoder.step(found) != 0, "a position beyond the cache was taken");
    decoder.arrays[1].set(0, 0);
    for (double id : {-1., double(size.vocab)}) {
      decoder.arrays[0].set(size.batch - 1, id);
      expect(decoder.step(found) != 0, "an id that is no word was taken");
    }
  }, {1, 2, 5});
}
