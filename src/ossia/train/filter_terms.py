"""Terms of the built-in filter for chemical, biological, radiological and nuclear content, as data.

Names of agents, weapons and dual-use processes only, all to be found in treaties, export-control
lists and encyclopaedias. A term ending in `*` stands for every word that begins so.
"""

from __future__ import annotations

CBRN_TERMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "chemical": (
        "Chemical weapons: agents, precursors and munitions.",
        (
            "sarin", "soman", "tabun", "cyclosarin", "novichok*", "VX nerve agent", "VX gas",
            "nerve agent*", "nerve gas*", "mustard gas", "mustard agent*", "sulfur mustard*",
            "sulphur mustard*", "nitrogen mustard*", "lewisite", "phosgene", "diphosgene",
            "cyanogen chloride", "blister agent*", "choking agent*", "blood agent*",
            "incapacitating agent*", "3-quinuclidinyl benzilate", "saxitoxin",
            "chemical weapon*", "chemical warfare", "chemical munition*", "binary munition*",
            "methylphosphonyl difluoride", "methylphosphonic dichloride", "pinacolyl alcohol",
            "thiodiglycol", "organophosphorus agent*", "precursor chemical*",
        ),
    ),
    "biological": (
        "Biological weapons: agents, toxins and the enhancement of pathogens.",
        (
            "anthrax", "bacillus anthracis", "smallpox", "variola", "variola major",
            "yersinia pestis", "francisella tularensis", "burkholderia mallei",
            "burkholderia pseudomallei", "clostridium botulinum", "botulinum toxin", "ricin",
            "abrin", "staphylococcal enterotoxin*", "ebola virus", "ebolavirus*", "marburg virus",
            "nipah virus", "lassa virus", "select agent*", "bioweapon*", "biological weapon*",
            "biological warfare", "biological agent*", "bioterror*", "weaponized pathogen*",
            "weaponised pathogen*", "gain of function", "pandemic pathogen*",
            "pathogen enhancement", "enhanced transmissibility", "virus reconstruction",
            "reverse genetics",
            "aerosolized spore*", "aerosolised spore*", "aerosolization", "aerosolisation",
        ),
    ),
    "radiological": (
        "Radiological weapons: dispersal devices and the sources that they would use.",
        (
            "dirty bomb*", "radiological dispersal", "radiological dispersion",
            "radiological exposure device*", "radiological weapon*", "radiological attack*",
            "radioactive dispersal", "caesium-137", "cesium-137", "caesium chloride",
            "cesium chloride", "cobalt-60", "strontium-90", "iridium-192", "americium-241",
            "californium-252", "polonium-210", "radium-226", "orphan source*", "sealed source*",
            "radioactive source*", "teletherapy source*", "radioactive contamination",
        ),
    ),
    "nuclear": (
        "Nuclear weapons: fissile material, enrichment, reprocessing and weapon components.",
        (
            "nuclear weapon*", "atomic bomb*", "nuclear warhead*", "nuclear explosive*",
            "improvised nuclear device*", "thermonuclear weapon*", "fissile material*",
            "fissile core*", "plutonium pit*", "weapons-grade", "weapon-grade",
            "highly enriched uranium", "uranium enrichment", "enriched uranium",
            "uranium hexafluoride", "uranium-235", "uranium-233", "plutonium-239",
            "plutonium reprocessing", "reprocessing plant*", "PUREX", "gas centrifuge*",
            "centrifuge cascade*", "gaseous diffusion", "laser isotope separation",
            "electromagnetic isotope separation", "calutron*", "explosive lens*",
            "implosion lens*", "implosion device*", "gun-type", "neutron initiator*",
            "neutron reflector*", "tritium boosting", "boosted fission", "critical mass",
        ),
    ),
}  # fmt: skip
"""Category → what it is about, and its terms."""
