//! Fields that clients send and that this server cannot do. A value that changes nothing passes,
//! since clients send all fields they know; any other is refused by name: an image that is drawn
//! without what was asked for is the wrong one.

use serde_json::Value;

use crate::pipeline::request::Request;
use crate::server::fault::Fault;
use crate::server::fields::Fields;

/// Whether a value says nothing: an empty text, list or object, or false.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(flag) => !flag,
        _ => false,
    }
}

/// Refuses the fields of `names` that have a value: they ask for something that cannot be drawn.
///
/// # Errors
/// 422.
pub fn refuse_fields(fields: &Fields, names: &[&str], why: &str) -> Result<(), Fault> {
    let given = names.iter().find(|name| fields.get(name).is_some_and(|v| !is_empty(v)));
    given.map_or(Ok(()), |name| Err(refused(name, why)))
}

/// Refuses the fields whose number is none of those that change nothing.
///
/// # Errors
/// 422.
pub fn refuse_numbers(fields: &Fields, names: &[(&str, &[f32])], why: &str) -> Result<(), Fault> {
    for (name, neutral) in names {
        if fields.get(name).is_some_and(is_empty) {
            continue;
        }
        if fields.real(name)?.is_some_and(|number| !neutral.contains(&number)) {
            return Err(refused(name, why));
        }
    }
    Ok(())
}

/// Refuses the fields whose text is none of those that change nothing, in any case.
///
/// # Errors
/// 422.
pub fn refuse_words(fields: &Fields, names: &[(&str, &[&str])], why: &str) -> Result<(), Fault> {
    for (name, neutral) in names {
        let text = fields.text(name)?.filter(|text| !text.is_empty());
        if text.is_some_and(|text| !neutral.iter().any(|word| word.eq_ignore_ascii_case(text))) {
            return Err(refused(name, why));
        }
    }
    Ok(())
}

fn refused(name: &str, why: &str) -> Fault {
    Fault::new(422, "unsupported", format!("{name}: {why}")).parameter(name).hint("leave it out")
}

/// True CFG and its negative prompt, for APIs whose clients name both. A negative prompt that would
/// have no effect is refused.
///
/// # Errors
/// 422.
pub fn set_cfg(
    fields: &Fields,
    request: &mut Request,
    scale: Option<f32>,
    how: &str,
) -> Result<(), Fault> {
    request.cfg_scale = scale.filter(|scale| *scale != 1.0);
    if request.cfg_scale.is_some() {
        request.negative = fields.text("negative_prompt")?.map(str::to_string);
        return Ok(());
    }
    let why = "it has an effect with classifier-free guidance only, which takes twice the time";
    refuse_fields(fields, &["negative_prompt"], why).map_err(|fault| fault.hint(how))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_that_change_nothing_pass_and_others_are_refused_by_name() {
        let value = json!({"off": false, "none": null, "empty": "", "zero": 0, "on": true,
                           "some": {"x": 1}, "half": 0.5, "euler": "Euler", "other": "heun"});
        let fields = Fields::of(&value).unwrap();
        refuse_fields(&fields, &["off", "none", "empty", "absent"], "x").unwrap();
        refuse_numbers(&fields, &[("zero", &[0.0]), ("off", &[]), ("half", &[1.0, 0.5])], "x")
            .unwrap();
        refuse_words(&fields, &[("euler", &["euler"]), ("empty", &[])], "x").unwrap();
        for (result, name) in [
            (refuse_fields(&fields, &["off", "on"], "x"), "on"),
            (refuse_fields(&fields, &["some"], "x"), "some"),
            (refuse_numbers(&fields, &[("half", &[1.0])], "x"), "half"),
            (refuse_words(&fields, &[("other", &["euler"])], "x"), "other"),
        ] {
            let fault = result.unwrap_err();
            assert_eq!((fault.status, fault.parameter.as_deref()), (422, Some(name)));
        }
    }

    #[test]
    fn a_negative_prompt_needs_true_cfg() {
        let value = json!({"negative_prompt": "blur"});
        let fields = Fields::of(&value).unwrap();
        let mut request = Request::new("a fox");
        set_cfg(&fields, &mut request, Some(3.5), "x").unwrap();
        assert_eq!((request.cfg_scale, request.negative.as_deref()), (Some(3.5), Some("blur")));
        let mut request = Request::new("a fox");
        for scale in [None, Some(1.0)] {
            let fault = set_cfg(&fields, &mut request, scale, "use cfg").unwrap_err();
            assert_eq!(fault.parameter.as_deref(), Some("negative_prompt"));
        }
        let value = json!({"negative_prompt": ""});
        set_cfg(&Fields::of(&value).unwrap(), &mut request, None, "x").unwrap();
    }
}
