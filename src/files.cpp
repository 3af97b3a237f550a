// What moe::io is compiled to besides load_layer.cpp: what opens and reads the files of models, and writes tensors.
#include "moe/io/model.hpp"

namespace moe::io {

template nlohmann::json parse_json<detail::Flags>(std::string_view, const std::string&);
template nlohmann::json read_json<detail::Flags>(const std::filesystem::path&);
template nlohmann::json read_settings<detail::Flags>(const std::filesystem::path&);
template TensorFile parse_safetensors<detail::Flags>(const MappedFile&, const std::string&);
template TensorFile read_safetensors<detail::Flags>(const std::filesystem::path&, Access);
template void write_safetensors<detail::Flags>(const std::filesystem::path&, const std::vector<Tensor>&,
                                               const Metadata&);
template GgufFile parse_gguf<detail::Flags>(const MappedFile&, const std::string&);
template GgufFile read_gguf<detail::Flags>(const std::filesystem::path&, Access);
template Tensors Tensors::open<detail::Flags>(const std::filesystem::path&, Access);
template void Config::take_parts<detail::Flags>();
template const nlohmann::json* Config::find<detail::Flags>(const std::string&) const;
template void Config::check_spelling<detail::Flags>(const std::string&) const;
template std::string Config::shown<detail::Flags>(const nlohmann::json&);
template std::vector<std::string> model_types<detail::Flags>();
template const Architecture* find_architecture<detail::Flags>(std::string_view);
template const Architecture& architecture_of<detail::Flags>(const Config&);
template MoeShape moe_shape<detail::Flags>(const Config&, const Architecture&, Index);
template MoeShape moe_shape<detail::Flags>(const Config&, const Architecture&, const std::string&);
template GgufModel translate_gguf<detail::Flags>(GgufFile, const std::string&);
template Model Model::opened<detail::Flags>(const std::filesystem::path&, const ReadOptions&);
template Model Model::of_parts<detail::Flags>(Config, Tensors);
template std::shared_ptr<const Tensors> Model::weights<detail::Flags>(const std::string&, ExpertLender*) const;
template std::vector<Block> Model::blocks<detail::Flags>() const;

}  // namespace moe::io
