// FLAC files and resampling, for run/sounds/.
#include "bind/bind.h"
#include "flac.h"
#include "resample.h"

namespace fh {
namespace {

// The reader, and the bytes that it refers to.
struct FlacFile {
  nb::bytes data;
  FlacReader reader;
  explicit FlacFile(nb::bytes bytes)
      : data(bytes), reader(static_cast<const uint8_t*>(bytes.data()), bytes.size()) {}
};

nb::object read(FlacFile& file, size_t most) {
  std::vector<float> mono;
  std::vector<uint8_t> pcm;
  {
    nb::gil_scoped_release free;
    file.reader.read(std::min(most, size_t{1} << 24), mono, pcm);
  }
  Out<float> samples = array<float>({mono.size()});
  std::copy(mono.begin(), mono.end(), samples.data());
  return nb::make_tuple(samples, nb::bytes(reinterpret_cast<const char*>(pcm.data()), pcm.size()));
}

Out<float> resampled(In<double, 1> input, int64_t begin, int64_t first, int64_t outputs, In<double, 2> weights, int64_t down) {
  const auto up = static_cast<int64_t>(weights.shape(0)), taps = static_cast<int64_t>(weights.shape(1));
  if (up < 1 || taps < 1 || down < 1 || first < 0 || outputs < 0 || first + outputs > (int64_t{1} << 40) || down > (1 << 20))
    throw Error(ErrorKind::Usage, "a filter needs weights, and a step of 1 to 2^20");
  Out<float> out = array<float>({static_cast<size_t>(outputs)});
  nb::gil_scoped_release free;
  resample(input.data(), static_cast<int64_t>(input.shape(0)), begin, first, outputs, {weights.data(), up, taps, down}, out.data());
  return out;
}

}  // namespace

void bind_sounds(nb::module_& m) {
  nb::class_<FlacFile>(m, "FlacFile", "A FLAC file that is decoded frame by frame (RFC 9639); errors are UsageErrors that say where.")
      .def(nb::init<nb::bytes>(), "data"_a, "Read the metadata.")
      .def_prop_ro("rate", [](const FlacFile& f) { return f.reader.info().rate; }, "Samples a second.")
      .def_prop_ro("channels", [](const FlacFile& f) { return f.reader.info().channels; })
      .def_prop_ro("bits", [](const FlacFile& f) { return f.reader.info().bits; }, "Of a sample, 4 to 32.")
      .def_prop_ro("total", [](const FlacFile& f) { return f.reader.info().total; }, "Samples of a channel as the header states; 0: it does not.")
      .def_prop_ro("md5", [](const FlacFile& f) {
        return nb::bytes(reinterpret_cast<const char*>(f.reader.info().md5.data()), 16);
      }, "Of all samples, as the header states; zeros: it does not.")
      .def("read", &read, "most"_a, nb::sig("def read(self, most: int) -> tuple[F32, bytes]"),
           R"(Return the next frames: the mean of their channels from -1 to 1, and what the MD5 is of; empty at the end.

Stops at the first frame that reaches `most` samples, at most 2^24. CRCs are checked; the MD5 is the caller's.)");
  m.def("resampled", &resampled, "input"_a, "begin"_a, "first"_a, "outputs"_a, "weights"_a, "down"_a,
        nb::sig("def resampled(input: NDArray[numpy.float64], begin: int, first: int, outputs: int, weights: NDArray[numpy.float64], down: int) -> F32"),
        R"(Return output samples `first` to `first + outputs`, each a sum of input times weights in the order of the input.

`begin`: the number of the first input sample; `weights`: [up, taps]; an output step is down / up of the input's.)");
}

}  // namespace fh
