// Chat templates through llama.cpp's own jinja engine, as C functions. No exception leaves this file: each is turned into
// text, because unwinding through Rust would end the process. JSON comes in with a bounded depth (chat.rs).

#include "chat.h"
#include "json.h"
#include "log.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

namespace {

template <typename F> auto guarded(char ** error, F && work) -> decltype(work()) {
    try {
        return work();
    } catch (const std::exception & e) {
        *error = strdup(e.what());
    } catch (...) {
        *error = strdup("an unknown exception");
    }
    return nullptr;
}

} // namespace

extern "C" {

// `common` has a logger of its own that writes to stderr from a thread of its own.
void rbee_chat_silence() {
    common_log_set_verbosity_thold(-1);
}

void * rbee_chat_open(const llama_model * model, const char * source, char ** error) {
    return guarded(error, [&]() -> void * {
        if (*source != '\0') {
            // common_chat_templates_init slices the exception and so loses the reason; parse once for its sake.
            common_chat_template(source, "", "");
        }
        return common_chat_templates_init(model, source).release();
    });
}

void rbee_chat_close(void * tmpl) {
    common_chat_templates_free(static_cast<common_chat_templates *>(tmpl));
}

// Takes {"messages": […], "add_generation_prompt": bool}, gives {"prompt": …, "stops": […]}.
char * rbee_chat_render(const void * tmpl, const char * request, char ** error) {
    return guarded(error, [&]() -> char * {
        common_json given = common_json::parse(request);
        common_chat_templates_inputs inputs;
        inputs.messages              = common_chat_msgs_parse_oaicompat(given.at("messages"));
        inputs.add_generation_prompt = given.at("add_generation_prompt").get<bool>();
        const auto rendered = common_chat_templates_apply(static_cast<const common_chat_templates *>(tmpl), inputs);
        common_json answer = common_json::object();
        answer["prompt"]   = rendered.prompt;
        answer["stops"]    = rendered.additional_stops;
        return strdup(answer.dump_safe().c_str());
    });
}

char * rbee_chat_source(const void * tmpl) {
    char * error = nullptr;
    char * source = guarded(&error, [&]() -> char * {
        return strdup(common_chat_templates_source(static_cast<const common_chat_templates *>(tmpl)).c_str());
    });
    free(error);
    return source;
}

void rbee_chat_free(char * text) {
    free(text);
}

} // extern "C"
