//! What people call pods and workloads by, in queries.

/// Whether `wanted` means this pod: its name or the beginning of it, also with its namespace before it.
#[must_use]
pub fn means_pod(namespace: &str, name: &str, wanted: &str) -> bool {
    match wanted.split_once('/') {
        Some((of, pod)) => of == namespace && !name.is_empty() && name.starts_with(pod),
        None => !name.is_empty() && name.starts_with(wanted),
    }
}

/// Whether `wanted` means the workload `Kind/name` of this namespace: `name`, `Kind/name`, `namespace/name` or
/// `namespace/Kind/name`; the kind in any case.
#[must_use]
pub fn means_workload(namespace: &str, workload: &str, wanted: &str) -> bool {
    let Some((kind, name)) = workload.split_once('/') else {
        return false;
    };
    match wanted.split('/').collect::<Vec<_>>()[..] {
        [wanted] => wanted == name,
        [of, wanted] => wanted == name && (of == namespace || of.eq_ignore_ascii_case(kind)),
        [of, of_kind, wanted] => wanted == name && of == namespace && of_kind.eq_ignore_ascii_case(kind),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_their_beginnings() {
        for wanted in ["cart", "cart-1", "shop/cart", "shop/"] {
            assert!(means_pod("shop", "cart-1", wanted), "{wanted}");
        }
        for wanted in ["art", "other/cart", "cart-12"] {
            assert!(!means_pod("shop", "cart-1", wanted), "{wanted}");
        }
        assert!(!means_pod("shop", "", "shop/"));
        for wanted in ["cart", "deployment/cart", "shop/cart", "shop/Deployment/cart"] {
            assert!(means_workload("shop", "Deployment/cart", wanted), "{wanted}");
        }
        for wanted in ["car", "StatefulSet/cart", "other/cart", "a/b/c/d", ""] {
            assert!(!means_workload("shop", "Deployment/cart", wanted), "{wanted}");
        }
        assert!(!means_workload("shop", "", "cart"));
    }
}
